"""Oracle upper bounds of identity similarity, whatever the DiT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fantasyid_lab import nano
from fantasyid_lab.people.person import person
from fantasyid_lab.training import oracle_bounds


def test_true_codes_make_the_same_person():
    one, other = person(3), person(4)
    true = oracle_bounds.codes_of([one])
    again = oracle_bounds.with_codes(other, true.shape[0], true.paint[0])
    assert torch.equal(again.shape_code, one.shape_code)
    for name, value in vars(one.paint).items():
        np.testing.assert_allclose(getattr(again.paint, name), value, rtol=1e-6)
    assert again.hair is other.hair


def test_ridge_finds_what_is_there_and_nothing_where_nothing_is():
    draw = torch.Generator().manual_seed(0)
    inputs, new_inputs = (torch.randn(n, 12, generator=draw) for n in (400, 50))
    weights = torch.randn(12, 3, generator=draw)
    predicted = oracle_bounds.ridge(inputs, inputs @ weights, new_inputs)
    inside = (new_inputs @ weights).clamp((inputs @ weights).amin(0), (inputs @ weights).amax(0))
    assert (predicted - inside).abs().max() < 0.05
    noise = torch.randn(400, 3, generator=draw)
    assert oracle_bounds.ridge(inputs, noise, new_inputs).var() < 0.1


def test_the_command_measures_re_renders(standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("dlib")
    model = nano.write(nano.build(standin / "face_model", nano.TINY), tmp_path / "model")
    options = ["--model", str(model), "--people", "2", "--frames", "1", "--fit", "8"]
    assert oracle_bounds.main([*options, "--json", str(tmp_path / "bounds.json")]) == 0
    report = json.loads((tmp_path / "bounds.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["true renders"]["share"] == pytest.approx(1)
    assert rows["true renders"]["found"] == 1
    assert rows["mean shape, true paint"]["share"] < 1
    assert rows["predicted from tokens, through the autoencoder"]["found"] == 0  # an untrained one shows no face
    assert report["told"]["tokens"] < 1
    assert "| shape and paint predicted from tokens | " in capsys.readouterr().out
