"""How ComfyUI holds what the pack loads, and what it asks of a model (`scripts/patchers.py`)."""

import pytest


@pytest.fixture(scope="module")
def found(host_script, standin, tmp_path_factory) -> dict:
    return host_script("patchers.py", tmp_path_factory.mktemp("host"), standin)


def test_every_patcher_is_of_the_class_that_comfyui_uses_at_that_time(found):
    wanted = {"FantasyIDModel", "_FirstStage", "Regressor", "FaceModel", "AttributeRegressor", "IdentityEncoder"}
    assert wanted <= set(found["made"])
    assert len(found["made"]) == len(wanted) + 1, "and the text encoder, made by ComfyUI's CLIP"


@pytest.mark.parametrize("part", ["model", "vae", "clip"])
def test_a_model_can_be_loaded_anew_with_weights_of_its_own(found, part):
    assert found["loaded anew"][part] == [True, True, "ModelPatcher"]


def test_a_copy_for_a_second_card_follows_the_same_identity(found):
    if "for a second card" not in found:
        pytest.skip("this ComfyUI uses one card")
    assert found["for a second card"] == [True, True]


def test_comfyui_s_own_node_trains_a_lora(found):
    assert found["trained"]
    assert found["untouched by training"]
    assert found["patched by the trained"]


def test_weights_that_dynamic_vram_lends_are_copied_where_they_are_kept(found):
    assert found["norms outlive the loan"] == [2.0, 3.0]


def test_weights_in_8_bits_are_multiplied_as_such_unless_a_lora_changes_them(found):
    assert found["8 bits unless patched"] == ["torch.float8_e4m3fn", "torch.bfloat16"]
