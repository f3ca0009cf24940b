"""Checkpoints that travel between machines: what they hold, how large they may be, how a run goes on from one."""

import json
import shutil
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator
from safetensors.torch import load_file

from fantasyid_core.errors import TrainingError
from fantasyid_lab.people.person import TRAIN
from fantasyid_lab.training import loop, portable
from fantasyid_lab.training.pool import Pool
from fantasyid_lab.training.run import STAGES
from fantasyid_lab.training.settings import PoolSettings
from fantasyid_lab.training.stage import Context


def test_a_run_goes_on_from_a_portable_checkpoint(context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch):
    """Weights, place on the learning rate's curve and metrics go on; the learning rate warms up once more."""
    accelerator = Accelerator(cpu=True)
    first = STAGES["vae"](context("vae", steps=2, warmup=2))
    loop.train(first, accelerator, resume=False)
    out = first.context.out
    whole = out / "checkpoints" / "vae"
    monkeypatch.setattr(portable, "FILE_BYTES", 20_000)
    progress, *tensors = portable.pack(whole, out / "portable")
    assert len(tensors) > 1
    assert all(path.stat().st_size < 24_000 for path in tensors)
    assert json.loads(progress.read_text())["optimizer_since"] == 2
    averages = load_file(whole / portable.EMA)
    shutil.rmtree(whole)

    again = STAGES["vae"](context("vae", steps=4, warmup=2))
    drawn, rates = again.batch, []
    monkeypatch.setattr(loop._Writer, "losses", lambda self, step, elapsed, lr, *rest: rates.append((step, lr)))

    def check(step: int, generator: torch.Generator) -> dict:
        if step == 2:
            for name, x in again.objective.named_parameters():
                if name in averages:
                    torch.testing.assert_close(x.detach(), averages[name], rtol=1e-3, atol=1e-6)
        return drawn(step, generator)

    again.batch = check
    loop.train(again, accelerator, resume=True)
    (third, rate), (fourth, next_rate) = rates
    assert (third, fourth) == (3, 4)
    # Half-way down the cosine (0.5), the first of two warming steps (0.5); then three quarters down, warm.
    assert rate == pytest.approx(again.settings.learning_rate * 0.25)
    assert next_rate == pytest.approx(
        again.settings.learning_rate * 0.5 * (1 + torch.tensor(0.75 * torch.pi).cos().item())
    )
    saved = json.loads((whole / portable.PROGRESS).read_text())
    assert (saved["step"], saved["optimizer_since"]) == (4, 2), "on this machine it goes on bit for bit from here"


def test_people_who_were_drawn_elsewhere_are_left_out():
    sizes = PoolSettings(capacity=4, people=4, with_video=0, stills=1, prefill=4, size=32, still_size=32, frames=5)
    through, later = (Pool(sizes, TRAIN, 0, torch.device("cpu")) for _ in range(2))
    through.restore(2)
    later.skip(1)
    later.prefill(4)
    assert torch.equal(later.shape, through.shape)
    assert later.people == 4


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        portable.pack(tmp_path / "checkpoints" / "vae", tmp_path)
    assert portable.unpack(tmp_path, "vae") is None
    (tmp_path / "vae.json").write_text('{"files": 2}')
    with pytest.raises(TrainingError, match=r"goes with vae-0\.safetensors, vae-1\.safetensors"):
        portable.unpack(tmp_path, "vae")
