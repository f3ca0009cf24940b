"""Our numbers against the release's."""

import json
import shutil

import pytest
import torch

from fantasyid_lab import parity


@pytest.fixture(scope="module")
def fixtures(parity_dir) -> parity.Fixtures:
    return parity.Fixtures(parity_dir)


@pytest.fixture(scope="module")
def rows(fixtures) -> dict[str, parity.Row]:
    return {row.name: row for row in parity.compare(fixtures)}


@pytest.mark.parametrize(
    "name",
    [
        *("face_tokens", "layer_attention_0", "layer_attention_1"),
        *("transformer_output_interval1", "transformer_output_interval2", "pipeline_latents"),
        *("encoder_code_for_draw_image", "hidden_0", "hidden_4", "pooled"),
    ],
)
def test_output_equals_the_release(rows, name):
    assert rows[name].error <= parity.LIMIT


@pytest.mark.parametrize(
    "name",
    [
        *("vertex_descriptor", "vertex_tokens", "encoder_code_for_photo_resized_224"),
        *("flame_vertices_shape_expression_pose", "flame_vertices_shape_only"),
    ],
)
def test_output_on_flame_s_mesh_equals_the_release(flame_dir, rows, name):
    assert rows[name].error <= parity.LIMIT


@pytest.mark.parametrize("name", ["level0_5023", "level1_1256"])
def test_spirals_are_in_openmesh_order(flame_dir, rows, name):
    assert rows[name].error == 0


def test_every_fixture_is_recomputed(rows, fixtures):
    assert len(rows) == (17 if fixtures.has_mesh else 10)


def test_dead_tensors_are_recognised_and_every_live_one_has_a_place(fixtures):
    published = fixtures.published
    assert sum(tensor.numel() for tensor in published.face_abstractor.values()) == pytest.approx(17.7e6, rel=0.01)
    assert not any(name.startswith(("face_abstractor.layers.9.", "vertex", "layer")) for name in published.dead)
    assert "left unloaded" in published.report


def test_the_command_fails_where_a_number_is_off(parity_dir, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    for name in ("meta.json", "recipe.py", "state_dict_manifest_2layers.json", "eva_visual_manifest.json"):
        shutil.copy(parity_dir / name, tmp_path / name)
    theirs = load_file(parity_dir / "eva_outputs.safetensors")
    save_file({"pooled": theirs["pooled"] * 1.001}, tmp_path / "eva_outputs.safetensors")
    assert parity.main([str(tmp_path)]) == 1
    assert "above" in capsys.readouterr().out


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 2
    assert "recipe.py" in capsys.readouterr().err


def test_another_salt_draws_other_weights(parity_dir, tmp_path):
    for name in ("recipe.py", "state_dict_manifest_2layers.json"):
        shutil.copy(parity_dir / name, tmp_path / name)
    (tmp_path / "meta.json").write_text(json.dumps({"salt": "other"}))
    ours, theirs = (parity.Fixtures(f).draw("input:latents", (2, 3)) for f in (tmp_path, parity_dir))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "error"), [(None, float("inf")), (torch.ones(3), float("inf")), (torch.tensor([3.0, 4.4]), 0.08)]
)
def test_relative_error(ours, error):
    assert parity.relative_error(ours, torch.tensor([3.0, 4.0])) == pytest.approx(error)


def test_a_number_that_is_not_finite_is_an_infinite_error():
    assert parity.relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
