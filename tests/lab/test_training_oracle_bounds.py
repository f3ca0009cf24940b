"""How near to a person any DiT could come."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fantasyid_lab import nano
from fantasyid_lab.people.person import person
from fantasyid_lab.training import oracle_bounds


def test_a_person_told_truly_is_the_same_person():
    one, other = person(3), person(4)
    true = oracle_bounds.described([one])
    again = oracle_bounds.redrawn_as(other, true.shape[0], true.paint[0])
    assert torch.equal(again.shape_code, one.shape_code)
    for name, value in vars(one.paint).items():
        np.testing.assert_allclose(getattr(again.paint, name), value, rtol=1e-6)
    assert again.hair is other.hair


def test_ridge_finds_what_is_there_and_nothing_where_nothing_is():
    draw = torch.Generator().manual_seed(0)
    known, new = (torch.randn(n, 12, generator=draw) for n in (400, 50))
    way = torch.randn(12, 3, generator=draw)
    told = oracle_bounds.ridge(known, known @ way, new)
    inside = (new @ way).clamp((known @ way).amin(0), (known @ way).amax(0))
    assert (told - inside).abs().max() < 0.05
    noise = torch.randn(400, 3, generator=draw)
    assert oracle_bounds.ridge(known, noise, new).var() < 0.1


def test_the_command_draws_and_judges(standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("dlib")
    model = nano.write(nano.build(standin / "face_model", nano.TINY), tmp_path / "model")
    options = ["--model", str(model), "--people", "2", "--frames", "1", "--fit", "8"]
    assert oracle_bounds.main([*options, "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    rows = {row["name"]: row for row in told["rows"]}
    assert rows["true renders"]["share"] == pytest.approx(1)
    assert rows["true renders"]["found"] == 1
    assert rows["everybody's mean shape, their own paint"]["share"] < 1
    assert rows["drawn as the tokens tell, through the autoencoder"]["found"] == 0  # an untrained one shows no face
    assert told["told"]["tokens"] < 1
    assert "| drawn as the tokens tell | " in capsys.readouterr().out
