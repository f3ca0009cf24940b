"""Compiled by ComfyUI, or in 8 bits: one graph for all blocks, whatever is varied."""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from pack.fantasyid_core.dit import fp8
from pack.fantasyid_core.dit.injection import Injection
from pack.fantasyid_core.dit.step_cache import CacheSettings
from pack.fantasyid_core.errors import HardwareError
from pack.nodes.host import attention, dit
from pack.nodes.host.options import add_injection, set_fp8_products, set_step_cache
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider, load
from torch import Tensor
from torch.nn.attention import SDPBackend

KEYS = {"blocks": [f"diffusion_model.transformer_blocks.{i}" for i in range(4)], "whole": None}


@pytest.fixture(scope="module", params=KEYS)
def keys(request) -> list[str] | None:
    """What is asked to be compiled: each block, or the whole model as by ComfyUI's node TorchCompileModel."""
    return KEYS[request.param]


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> None:
    torch.compiler.reset()


@pytest.fixture(scope="module")
def plain(standin):
    return load(standin)


@pytest.fixture(scope="module")
def model(plain):
    return add_injection(plain, identity(20, 0))


def identity(tokens: int, seed: int, *settings: float) -> Injection:
    return Injection(torch.randn(tokens, 64, generator=torch.Generator().manual_seed(seed)), *settings)


def sample(model, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 16, 3, 16, 24, generator=generator)
    text = torch.randn(1, 226, 32, generator=generator)
    image = {"concat_latent_image": torch.randn(1, 16, 1, 16, 24, generator=generator)}
    return in_comfyui.sample(guider(model, [[text, image]], [[-text, image]]), noise, 4)


GRAPHS = []


def backend(graph: torch.fx.GraphModule, inputs: list):
    """Runs what it is to compile. It is one for all: for another one everything is compiled anew."""
    GRAPHS.append(graph)
    return graph.forward


def graphs_of(model, keys: list[str] | None, seed: int = 0) -> int:
    """How many graphs sampling a freshly compiled clone makes; its latents are those of the eager one."""
    eager, compiled, before = sample(model, seed), model.clone(), len(GRAPHS)
    set_torch_compile_wrapper(model=compiled, backend=backend, keys=keys)
    assert difference(sample(compiled, seed), eager) < 1e-5
    return len(GRAPHS) - before


def test_all_blocks_share_one_graph_and_nothing_is_compiled_again(plain, model, keys):
    assert graphs_of(model, keys) == 1
    for varied, other in {
        "new strength": add_injection(plain, identity(20, 0, 0.7)),
        "another identity": add_injection(plain, identity(20, 1)),
        "another number of tokens": add_injection(plain, identity(33, 1)),
        "a part of the run": add_injection(plain, identity(33, 1, 0.5, 0.3, 0.8)),
        "two identities": add_injection(model, identity(33, 1)),
        "no identity": plain,
        "steps skipped": set_step_cache(model, CacheSettings(1e9, start=0.0)),
    }.items():
        assert graphs_of(other, keys) == 0, varied
    assert graphs_of(model, keys, seed=1) == 0, "new seed and prompt"


def test_the_fastest_attention_leaves_one_graph(model, keys, monkeypatch):
    """PyTorch's fastest kernel is asked for around the blocks."""
    monkeypatch.setattr(attention, "_has_kernels", lambda _: True)
    monkeypatch.setattr(attention, "fastest_backend", lambda *_: SDPBackend.EFFICIENT_ATTENTION)
    assert graphs_of(model, keys) == 1
    assert graphs_of(model, keys, seed=1) == 0


def test_a_nodes_own_attention_splits_the_graph_once_for_all_blocks(model, keys):
    """No compiler looks into it."""
    own = model.clone()
    own.model_options["transformer_options"]["optimized_attention_override"] = lambda attend, *a, **b: attend(*a, **b)
    assert graphs_of(own, keys) <= 4
    assert graphs_of(own, keys, seed=1) == 0


def test_streamed_blocks_are_not_compiled(plain, model, keys, monkeypatch):
    """On a CPU nothing is ever elsewhere: some blocks, then all, are said to be."""
    block = plain.model.diffusion_model.transformer_blocks[0]
    assert dit._is_streamed(block, torch.device("meta"))
    assert not dit._is_streamed(block, torch.device("cpu"))
    weight = next(block.parameters())
    monkeypatch.setattr(dit, "_is_streamed", lambda block, _: next(block.parameters()) is not weight)
    assert graphs_of(model, keys) == 1
    torch.compiler.reset()
    monkeypatch.setattr(dit, "_is_streamed", lambda *_: True)
    assert graphs_of(model, keys) == 0


# 8-bit products, by their eager reference here


@pytest.fixture
def faster(model, monkeypatch):
    """The MODEL with 8-bit products, on hardware that is said to have them."""
    monkeypatch.setattr(fp8, "missing", lambda device: None)
    return set_fp8_products(model, True)


def test_8_bit_products_are_refused_where_the_hardware_has_none(model):
    with pytest.raises(HardwareError, match=r"(?s)^fp8_products needs an NVIDIA card.*Switch it off"):
        set_fp8_products(model, True)


def test_8_bit_products_stay_near_the_exact_ones(plain, model, faster):
    latents, exact = sample(faster), sample(model)
    assert 1e-4 < difference(latents, exact) < 0.2
    assert torch.equal(sample(add_injection(set_fp8_products(plain, True), identity(20, 0))), latents)
    assert torch.equal(sample(set_fp8_products(faster, False)), exact)


def test_8_bit_products_compile_once(faster):
    assert graphs_of(faster, None) == 1


def test_8_bit_products_take_their_weights_from_comfyui(faster, standin):
    partial = set_fp8_products(add_injection(load(standin), identity(20, 0)), True)
    partial.load(torch.device("cpu"), lowvram_model_memory=200_000)
    assert partial.model.model_lowvram
    assert difference(sample(partial), sample(faster)) == 0
    stored = add_injection(load(standin, "fp8_e4m3fn"), identity(20, 0))
    assert 1e-4 < difference(sample(set_fp8_products(stored, True)), sample(stored)) < 0.2
