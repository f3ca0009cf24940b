"""Training with several processes: they end at the same step, though each has a clock of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from fantasyid_core.training import together

ROOT = Path(__file__).parent.parent


def test_two_processes_train_as_one_run(tmp_path: Path):
    small = ["minutes=0.1", "steps=1000000", "log_every=1", "checkpoint_seconds=1"]
    changes = [word for change in small for word in ("--set", change)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launch, "-m", "fantasyid_core.training", "identity", "--tiny", "--out", str(tmp_path), *changes],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads((tmp_path / "done.json").read_text()) == ["identity"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "losses" in line]
    assert steps == list(range(1, len(steps) + 1))  # one of them speaks
    assert len(steps) % together.EVERY == 0
    state = json.loads((tmp_path / "checkpoints" / "identity" / "progress.json").read_text())
    assert state["step"] == len(steps)
