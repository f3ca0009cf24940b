"""What a step of training waits for."""

from pathlib import Path

import pytest

from fantasyid_lab import nano
from tools.measure import profile_stage


def test_steps_on_clips_and_photos_and_a_chunk_are_looked_at(
    standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model = nano.write(nano.build(standin / "face_model", nano.TINY), tmp_path / "model")
    pool = {"people": 4, "with_video": 4, "stills": 2, "capacity": 4, "frames": 9, "size": 32, "still_size": 64}
    pool["validation"] = 4
    sizes = [word for name, value in pool.items() for word in ("--set", f"pool.{name}={value}")]
    profile_stage.main(["base", "--model", str(model), "--steps", "1", "--set", "batch=2", *sizes])
    output = capsys.readouterr().out
    for line in ("step on clips, batch 2: ", "step on photos, batch 2: ", "chunk of the pool: ", "aten::addmm"):
        assert line in output
