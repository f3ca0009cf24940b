"""Models with parts left out, side by side: what a folder was trained on is what it is judged with."""

from pathlib import Path

import pytest
import torch

from fantasyid_core.fusion.identity import load_identity, save_identity
from fantasyid_core.meters.attribute_regressor import AttributeRegressor
from fantasyid_lab import nano
from fantasyid_lab.evaluation import ablation, cases, generate
from fantasyid_lab.people.colours import COLOURS


@pytest.fixture(scope="module")
def models(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained tiny models: both branches, the 2-D one, the 3-D one; and an untrained judge."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    AttributeRegressor(len(COLOURS)).save(folder / "judge")
    written = {"judge": folder / "judge"}
    for name, branches in (("full", None), ("no_3d", ["2d"]), ("no_2d", ["3d"])):
        model = nano.build(standin / "face_model", nano.TINY)
        model.config |= {"identity_branches": branches} if branches else {"first_frame_condition": True}
        written[name] = nano.write(model, folder / name)
    return written


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return cases.show([cases.draw(2)[0].reference]).frames[0, 0]


def test_a_branch_that_was_left_out_of_training_gives_no_tokens(models: dict[str, Path], photo: torch.Tensor):
    face = generate.reference(photo)
    full, flat, shape = (generate.load(models[name]).identity(face) for name in ("full", "no_3d", "no_2d"))
    assert torch.equal(flat.tokens, full.face_tokens)
    assert torch.equal(shape.tokens, full.vertex_tokens)


def test_an_identity_of_one_branch_is_saved_and_read_back(models: dict[str, Path], photo: torch.Tensor, tmp_path: Path):
    identity = generate.load(models["no_3d"]).identity(generate.reference(photo))
    save_identity(identity, tmp_path / "one.safetensors")
    assert torch.equal(load_identity(tmp_path / "one.safetensors").tokens, identity.tokens)


def test_the_table_has_a_line_per_variant_and_its_seeds(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    pytest.importorskip("dlib")
    named = [f"mine={models['full']},{models['no_2d']}", f"no_3d={models['no_3d']}"]
    options = ["--people", "2", "--frames", "1", "--steps", "1", "--device", "cpu", "--judge", str(models["judge"])]
    assert ablation.main([*named, *options, "--no-judging", "--save-frames", str(tmp_path)]) == 0
    assert ablation.main([*options, "--load-frames", str(tmp_path)]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    by_variant = {line[0]: line for line in lines}
    assert list(by_variant)[2:] == ["true renders", "mine", "no_3d"]
    assert by_variant["true renders"][1] == "1.00"
    assert by_variant["mine"][1] == "0.00 / 0.00"  # untrained models show no face, in either seed
    assert by_variant["no_3d"][-1] == ablation.VARIANTS["no_3d"].predicted


@pytest.mark.parametrize("named", ["no_3d={full}", "full={no_2d}", "no_first_frame={full}", "{full}", "full="])
def test_a_model_under_the_wrong_name_is_refused(models: dict[str, Path], named: str, capsys: pytest.CaptureFixture):
    assert ablation.main([named.format(**models), "--people", "2", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("FantasyIDError: ")


def test_switches_of_the_training_exist():
    from fantasyid_lab.training import settings

    for variant in ablation.VARIANTS.values():
        settings.read(settings.HERE / "identity.toml", [variant.changes] if variant.changes else [])
