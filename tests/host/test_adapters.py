"""The layers that our networks are built from in ComfyUI: the same numbers as PyTorch's, and ComfyUI's to manage."""

import pytest


@pytest.fixture(scope="module")
def operators(host_script, standin, tmp_path_factory) -> dict:
    return host_script("operators.py", tmp_path_factory.mktemp("operators"), standin)


def test_operators_compute_the_same_from_weights_of_another_type(operators):
    assert max(operators["differences"].values()) < 1e-5


def test_all_weights_are_comfyui_s_to_manage_but_those_that_move_themselves(operators):
    assert operators["unmanaged"] == {
        "transformer": [],
        "encoder": ["Attention", "FaceAbstractor", "ImageTower", "VertexSpiralNet"],
    }
