"""The host's VAE, CLIP and operators around published weights: the same numbers as diffusers and transformers.

Each script runs in a process of its own with the real host's modules (see `scripts/host.py`).
"""

from pathlib import Path

import pytest

from tools import comfy_version


@pytest.fixture(scope="module")
def vae(host_script, tmp_path_factory) -> dict:
    return host_script("vae.py", tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def text(host_script, tmp_path_factory) -> dict:
    return host_script("text.py", tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def operators(host_script, standin, tmp_path_factory) -> dict:
    return host_script("operators.py", tmp_path_factory.mktemp("operators"), standin)


@pytest.fixture(scope="module")
def base(host_script, tmp_path_factory) -> dict:
    return host_script("base.py", tmp_path_factory.mktemp("base"))


def test_a_node_s_own_errors_carry_its_name_and_all_others_pass_untouched(base):
    assert base["node"] == "fine with nothing, hidden is True"
    assert base["input_types"] == ["cause"]
    assert base["causes"] == {
        "own": "FaceNotFoundError: FantasyID Probe: no face in the photo",
        "cancel": "InterruptProcessingException: ",
        "memory": "OutOfMemoryError: out of memory",
        "other": "ValueError: a bug",
    }


def test_models_are_listed_and_found(base):
    assert (base["folders"], base["files"]) == (["shipped", "tiny"], ["TWO.SAFETENSORS", "one.safetensors"])
    assert base["resolved"] == [True, True]


def test_the_model_inside_the_pack_is_found_behind_the_artist_s_own(base):
    assert base["shipped"]
    assert base["bundled"]
    assert base["resolved"][0], "an own model of the same name wins"
    assert base["shared parts"]
    folders, missing = base["without a bundled model"]
    assert folders == ["tiny"]
    assert "'shipped' is not there" in missing


def test_no_name_leads_out_of_the_host_s_folders(base):
    assert all("is not a model's name" in answer for answer in base["tricks"].values())
    assert all("cannot be a folder's name" in answer for answer in base["targets"].values())
    assert all(answer.startswith("IdentityError") for answer in base["identity_tricks"])
    assert base["save_trick"].startswith("SaveError")


def test_a_missing_model_is_named_with_its_path_and_its_source(base):
    for part in ("models/fantasyid/absent", "acvlab/FantasyID", "amap_cvlab/FantasyID", "FantasyID Download Model"):
        assert part in Path(base["missing"]).as_posix()


def test_identities_are_listed_found_and_saved_in_the_host_s_folders(base):
    assert base["identities"] == ["EVE.SafeTensors", "anne.safetensors", "faces/bob.safetensors [output]"]
    assert base["identity_paths"] == [True, True, True]
    assert base["saved"] == "output/faces/carol_00001_.safetensors"


def test_meshes_are_listed_in_whatever_case_and_found(base):
    assert base["meshes"] == ["HEAD.PLY", "deca.obj", "faces/bob.ply [output]"]
    assert base["mesh_paths"] == [True, True, True]
    assert all(answer.startswith("MeshError") for answer in base["mesh_tricks"])


def test_what_is_saved_through_a_linked_folder_is_listed_and_loads(base):
    if comfy_version.saves_through_links():
        assert base["linked"] == ["linked/dora_00001_.safetensors [output]", True, True]
    else:
        assert base["linked"].startswith("SaveError: Cannot save as 'linked/dora'")


@pytest.mark.parametrize("state", ["without nano", "half of nano"])
def test_the_model_that_comes_with_the_pack_is_no_download(base, state: str):
    assert "reinstall the pack" in base[state]
    assert "git checkout -- models/FantasyID-nano" in base[state]
    assert "acvlab" not in base[state]


def test_the_download_node_needs_consent_shows_the_size_and_can_be_cancelled(base):
    message, output, message = base["unconfirmed"]
    assert message.startswith("Nothing was downloaded yet. It would be 1 files, 0.00 GB")
    assert "tick 'confirm'" in message
    assert [output, message] == ["ExecutionBlocker", None], "nothing red: what hangs on it waits without a word"
    assert base["nothing_written"]
    assert base["download"] == ["FantasyID"]
    assert base["downloaded"]
    assert base["cancelled"].startswith("InterruptProcessingException")


def test_operators_compute_the_same_from_weights_of_another_type(operators):
    assert max(operators["differences"].values()) < 1e-5


def test_all_weights_are_comfyui_s_to_manage_but_those_that_move_themselves(operators):
    assert operators["unmanaged"] == {
        "transformer": [],
        "encoder": ["Attention", "FaceAbstractor", "ImageTower", "VertexSpiralNet"],
    }


def test_vae_is_the_hosts_and_every_layer_is_its_operator(vae):
    assert vae["is_host_vae"]
    assert vae["layers_the_host_cannot_move"] == []
    assert vae["scaling_factor"] == 0.7
    assert vae["decode_with_cast_weights"] < 1e-5


@pytest.mark.parametrize("frames", ["1", "5", "9", "17"])
def test_vae_encodes_to_the_mode_as_diffusers(vae, frames):
    assert vae["encode"][frames] < 1e-5


@pytest.mark.parametrize("latents", ["1", "3", "5"])
def test_vae_decodes_as_diffusers(vae, latents):
    assert vae["decode"][latents] < 1e-5


def test_vae_decodes_any_number_of_latents_to_four_frames_each_after_the_first(vae):
    assert vae["decoded_frames"] == {"1": 1, "2": 5, "3": 9, "4": 13, "5": 17}
    assert vae["decode_even"] < 1e-5


def test_vae_draws_the_release_s_sample_from_a_seed(vae):
    assert vae["sample"] < 1e-5


def test_vae_crops_what_makes_no_latent(vae):
    assert vae["encode_uneven_is_cropped"] == 0
    assert vae["odd_size"] == [1, 16, 1, 3, 5]


def test_vae_works_in_tiles(vae):
    assert vae["tiled_decode_shape"]
    assert vae["tiled_in_time_shape"]
    assert vae["tiled_decode_of_one_tile"] < 1e-5
    assert vae["tiled_encode_shape"] == [1, 16, 2, 8, 12]
    assert vae["tiled_encode_of_one_tile"] < 1e-5


def test_vae_saved_by_the_host_loads_as_a_single_file(vae):
    assert vae["single_file"] < 1e-5


def test_vae_asks_the_host_for_the_memory_that_was_counted_and_measured(vae):
    assert vae["decode_gib"] == pytest.approx([1.15 * 3.3, 1.15 * 7.5, 1.15 * 7.5], rel=0.05)
    assert vae["encode_gib"] == pytest.approx([1.9, 4.2, 6.5, 8.9, 8.9], rel=0.05)  # 49 frames: 7.7 were measured


def test_vae_decodes_in_the_largest_tiles_that_free_memory_allows(vae):
    difference, part = vae["decoded_whole_where_it_fits"]
    assert difference < 1e-5
    assert part == [3, 40, 72]
    assert vae["tiles_where_memory_is_short"] == [[3, 40, 40]]
    assert 1e-5 < vae["tiles_show_the_same"] < 0.05
    assert vae["smallest_tile"] == [32, 32]
    assert vae["tile_where_8_gib_are_free"] == [60, 49]


def test_vae_errors_say_what_was_expected(vae):
    assert "connect the VAE output of 'FantasyID Load Model'" in vae["errors"]["another VAE"]
    assert vae["errors"]["not a VAE"].startswith("WeightsError")
    assert vae["errors"]["no VAE"].startswith("WeightsMissingError")


@pytest.mark.parametrize("model", ["gated", "plain", "bytes"])
def test_text_encoder_of_a_folder_matches_transformers(text, model):
    assert text["is_host_clip"]
    assert text["kept_dtype"] == "torch.float32"
    for prompt in ("empty", "short", "foreign", "long"):
        assert text[f"{model} {prompt} shape"] == [1, 226, 32]
        assert text[f"{model} {prompt} difference"] < 1e-5
        assert not text[f"{model} {prompt} has a mask"]
    for prompt in ("empty", "short", "foreign", *(["long"] if model == "bytes" else [])):
        assert text[f"{model} {prompt} same tokens"]


def test_a_prompt_that_is_too_long_is_cut_and_the_log_says_so(text):
    assert any("only the first 225 are used" in line for line in text["warnings"])


def test_the_stock_prompt_node_gives_an_encoder_on_bytes_what_it_was_trained_on(text):
    for prompt in ("empty", "foreign", "long"):
        assert text[f"stock {prompt}"]
    assert text["stock at 512 tokens"] == [1, 226, 32]
    assert text["stock weights act"]
    assert text["half a character"]


def test_a_stock_t5_works_and_one_with_a_mask_is_refused(text):
    for made in text["stock"].values():
        assert [shape for shape, _ in made] == [[1, 226, 32]] * 2
        assert made == text["stock"]["pixart"], "T5 without a mask is the same under either type"
    assert text["recommended"] == ("cogvideox" if "cogvideox" in text["stock"] else "pixart")
    assert f"type '{text['recommended']}'" in text["errors"]["masked"]


def test_text_encoder_errors_name_what_does_not_fit(text):
    assert text["errors"]["missing"].startswith("WeightsMissingError")
    assert "32128 or 264" in text["errors"]["vocabulary"]
    assert "[264] tokens" in text["errors"]["odd vocabulary"]
    assert "4 of another shape" in text["errors"]["shapes"]
    assert "8 missing" in text["errors"]["layers"]
    assert "gated-silu" in text["errors"]["activation"]
