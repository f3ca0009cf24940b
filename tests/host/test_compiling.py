"""Compiled by the host, or in 8 bits (`scripts/compiling.py`): one graph for all blocks, whatever is varied."""

import pytest

VARIED = [
    *("new seed and prompt", "new strength", "another identity", "another number of tokens"),
    *("a part of the run", "two identities", "no identity", "steps skipped"),
]


@pytest.fixture(scope="module")
def found(host_script, standin, tmp_path_factory) -> dict:
    return host_script("compiling.py", standin, tmp_path_factory.mktemp("host"))


@pytest.fixture(params=["blocks", "whole"])
def made(found, request) -> dict:
    """Difference to eager and number of new graphs, where each block was asked to be compiled, or the whole model."""
    return found[request.param]


def test_all_blocks_share_one_graph(made):
    difference, graphs = made["first"]
    assert graphs == 1
    assert difference < 1e-5


@pytest.mark.parametrize("what", VARIED)
def test_nothing_is_compiled_again(made, what):
    difference, graphs = made[what]
    assert graphs == 0
    assert difference < 1e-5


def test_the_fastest_attention_leaves_one_graph_and_a_nodes_own_splits_it_once_for_all_blocks(made):
    for attention, most in (("fastest kernel", 1), ("a node's attention", 4)):
        difference, graphs = made[attention]
        assert graphs <= most
        assert difference < 1e-5
        assert made[f"{attention} again"][1] == 0


def test_streamed_blocks_are_not_compiled(found, made):
    assert found["elsewhere"]
    assert not found["on the device"]
    for what, most in (("some streamed", 1), ("all streamed", 0)):
        difference, graphs = made[what]
        assert graphs == most
        assert difference < 1e-5


def test_8_bit_products_are_refused_where_the_hardware_has_none(found):
    assert found["refused"].startswith("HardwareError: fp8_products needs an NVIDIA card")
    assert "Switch it off" in found["refused"]


def test_8_bit_products_stay_near_the_exact_ones(found):
    assert 1e-4 < found["fp8 difference"] < 0.2
    assert found["before or after"]
    assert found["switched off again"]


def test_8_bit_products_compile_once(found):
    difference, graphs = found["fp8 compiled"]
    assert graphs == 1
    assert difference < 1e-5


def test_8_bit_products_take_their_weights_from_the_host(found):
    lowvram, difference = found["partially loaded"]
    assert lowvram
    assert difference == 0
    assert 1e-4 < found["stored in fp8"] < 0.2
