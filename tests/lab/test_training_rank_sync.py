"""Training with several processes: they end at the same step, though each has a clock of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator

from fantasyid_core.errors import TrainingError
from fantasyid_lab.training import loop, rank_sync
from fantasyid_lab.training.run import STAGES
from fantasyid_lab.training.stage import Batch
from tools.environment import ROOT


def test_two_processes_train_as_one_run(tmp_path: Path):
    small = ["minutes=0.1", "steps=1000000", "log_every=1", "checkpoint_seconds=1"]
    changes = [word for change in small for word in ("--set", change)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launch, "-m", "fantasyid_lab.training", "identity", "--tiny", "--out", str(tmp_path), *changes],
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
    assert len(steps) % rank_sync.AGREE_EVERY == 0
    state = json.loads((tmp_path / "checkpoints" / "identity" / "progress.json").read_text())
    assert state["step"] == len(steps)


def test_where_others_wait_a_smaller_batch_is_asked_for(monkeypatch: pytest.MonkeyPatch, context: Callable):
    stage = STAGES["base"](context("base", batch=4))

    def full(batch: Batch) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(stage.objective, "forward", full)
    alone = Accelerator(cpu=True)
    with pytest.raises(torch.OutOfMemoryError):  # with half the batch, and half of that, then nothing is left
        loop.train(stage, alone, resume=False)
    assert stage.settings.batch == 1
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "reduce", lambda self, values, kind: values)
    stage = STAGES["base"](context("base", batch=4))
    monkeypatch.setattr(stage.objective, "forward", full)
    with pytest.raises(TrainingError, match="--set batch=2"):
        loop.train(stage, alone, resume=False)
