"""The DiT as the host's MODEL, in one process with the real host's modules (`scripts/model.py`)."""

import pytest


@pytest.fixture(scope="module", params=["standin", "standin_nano"])
def layout(request) -> str:
    """The published model's layout, with learned positions, and FantasyID-nano's, with rotary positions alone."""
    return request.param


@pytest.fixture(scope="module")
def found(host_script, layout, request, tmp_path_factory) -> dict:
    return host_script("model.py", request.getfixturevalue(layout), tmp_path_factory.mktemp("host"))


def test_a_prediction_through_the_host_equals_the_core(found):
    assert found["prediction difference"] < 1e-5


def test_the_stock_ddim_sampler_and_the_released_loop_agree(found):
    assert found["ddim cosine"] >= 0.999


def test_the_dpm_scheduler_repeats_with_its_seed(found):
    assert found["dpm repeats"]


def test_the_identity_changes_the_video(found):
    assert found["identity acts"] > 0.01


def test_the_image_condition_changes_the_video_of_a_model_that_was_trained_with_it(found, layout):
    assert found["image condition acts"] > 0.01 if layout == "standin" else found["image condition acts"] == 0


def test_applications_share_weights_and_leave_the_plain_model_alone(found):
    assert found["shares weights"]
    assert found["plain untouched"]
    assert found["strength 0"] == 0
    assert found["two identities"] > 0.01


def test_start_percent_bounds_when_the_identity_acts(found):
    assert found["second half only"] > 1e-3
    assert found["after the last step"] == 0


def test_guidance_leads_to_an_identity_that_the_negative_branch_goes_without(found):
    assert found["guided difference"] < 1e-4
    assert found["guided acts"] > 1e-3
    assert found["guided without guidance"] == 0


def test_keys_and_values_are_computed_once_per_layer_and_run(found):
    assert found["keys and values computed"] == 2


@pytest.mark.parametrize("names", ["peft", "host", "injection"])
def test_a_stock_lora_equals_weights_changed_by_hand(found, names):
    assert found[f"lora {names}"] < 1e-4
    assert found[f"lora {names} acts"] > 1e-3


def test_a_lora_leaves_no_trace(found):
    assert found["unpatched again"] == 0


def test_fp8_storage_equals_dequantised_weights(found):
    assert found["fp8 stored"]
    assert found["fp8 difference"] == 0


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_stays_near(found, name):
    assert found[f"{name} stored"] == {"bf16": "torch.bfloat16", "fp16": "torch.float16"}[name]
    assert found[f"{name} difference"] < 0.05


def test_partial_loading_changes_nothing(found):
    assert found["partially loaded"]
    assert found["partial difference"] == 0


def test_patches_and_wrappers_of_other_packs_take_part(found):
    assert found["patches seen"] == [6, 6, 6, 6]
    assert found["patched difference"] == 0


def test_misfits_are_named(found):
    assert "width 10" in found["wrong identity"]
    assert "do not fit 5 blocks" in found["wrong config"]
    assert "does not describe a CogVideoX VAE" in found["wrong colours"]


def test_only_learned_positions_bind_a_model_to_one_size(found, layout):
    assert found["warnings"] == []
    if layout == "standin":
        assert "192 × 128" in found["wrong size"]
    else:
        (warning,) = found["warnings of another size"]
        assert "knows 160 × 160 pixels and at most 25 frames" in warning
        assert found["wrong size"] == "accepted"
        assert found["of another size"] == [1, 16, 2, 8, 20]


def test_live_previews_have_a_colour_for_every_channel(found):
    assert found["preview factors"] == [16, 3]


def test_a_vae_may_bring_the_scale_and_the_preview_colours_of_its_latents(found):
    assert found["own colours"] == [1.2, True]
    assert found["colours of others"] == 0.7
