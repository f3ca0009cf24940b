"""MODEL and VAE through ComfyUI's own nodes for saving and LoRAs, files in 8 bits (`scripts/round_trip.py`)."""

import pytest


@pytest.fixture(scope="module", params=["standin", "standin_nano"])
def layout(request) -> str:
    """The published model, whose sizes its tensors tell, and FantasyID-nano's layout, where they do not."""
    return request.param


@pytest.fixture(scope="module")
def found(host_script, layout, request, tmp_path_factory) -> dict:
    return host_script("round_trip.py", tmp_path_factory.mktemp("host"), request.getfixturevalue(layout))


@pytest.mark.parametrize("saved", ["model", "checkpoint", "model with a vae file"])
def test_what_comfyui_saves_of_a_model_with_a_lora_loads_again(found, saved):
    assert found["lora acts"] > 0.01
    assert found[saved]["difference"] < 1e-5
    assert found[saved]["configuration"]
    assert found[saved]["vae"] == 0


def test_the_identity_encoder_comes_from_the_folder_chosen_or_the_error_says_so(found):
    assert found["model"]["encoder"] == ""
    assert found["encoder of the folder"]
    assert "parts_from of FantasyID Load Model" in found["checkpoint"]["encoder"]
    assert "comes without a VAE" in found["without a vae"]
    assert "parts_from" in found["without a vae"]


def test_a_lora_that_videox_fun_named_acts_as_the_same_under_other_names(found):
    assert found["videox-fun"] == 0
    assert found["videox-fun with alpha"] == 0


@pytest.mark.parametrize("case", ["no name fits", "no name fits a clone's clone"])
def test_a_lora_of_which_nothing_fits_is_an_error(found, case):
    assert "Not one tensor of this LoRA fits" in found[case]
    assert found["untouched"] == 0


@pytest.mark.parametrize("file", ["e4m3fn", "e5m2"])
def test_a_file_all_in_8_bits_is_stored_as_asked(found, file):
    """Where 8 bits stay, they stay in the blocks' linear layers alone; the values are the file's."""
    stored = {name: kinds[:2] for name, kinds in found[file].items()}
    plain = {"bf16": ["bfloat16"] * 2, "fp16": ["float16"] * 2, "fp32": ["float32"] * 2}
    assert {name: stored[name] for name in plain} == plain
    assert stored["default"][0] == f"float8_{file}"
    assert stored["fp8_e4m3fn"][0] == "float8_e4m3fn"
    assert not {kinds[1] for kinds in stored.values()} & {"float8_e4m3fn", "float8_e5m2"}
    assert found[file]["default"][2] < 0.02
    assert found[file]["fp32"][2] == 0


def test_8_bits_with_scales_are_refused_when_the_file_is_loaded(found):
    assert found["scaled"].startswith("WeightsError")
    assert "plain fp8" in found["scaled"]
