"""The training loop of every stage."""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fantasyid_core.errors import TrainingError

from . import pictures
from .checkpoint import Checkpoint
from .rank_sync import Progress, RankSync
from .stage import Stage
from .stepper import Stepper

log = logging.getLogger(__name__)


class Stopped(Exception):
    """The process was asked to end (SIGTERM, SIGINT) and has saved its state."""


def train(stage: Stage, accelerator: Accelerator, resume: bool) -> dict[str, float]:
    """Train a stage to its end and export it; returns the numbers of its validation.

    Raises:
        Stopped: asked to end; a checkpoint was written.
        TrainingError: the loss is not finite, or one of several processes is out of memory.
    """
    loop = _Loop(stage, accelerator, resume)
    try:
        return loop.run()
    finally:
        loop.checkpoint.close()
        accelerator.free_memory()


class _Loop:
    """One stage's training.

    Attributes:
        step: that comes next; optimizer_since: the step that the optimisers' state begins with.
        progress: how far all ranks are, as last agreed.
    """

    def __init__(self, stage: Stage, accelerator: Accelerator, resume: bool):
        settings, context = stage.settings, stage.context
        self.stage, self.accelerator, self.context, self.pool = stage, accelerator, context, context.pool
        self.stepper = Stepper(stage, accelerator)
        self.ema = self.stepper.ema
        self.checkpoint = Checkpoint(
            context.out / "checkpoints" / settings.stage, accelerator, stage.objective, self.ema
        )
        state = (self.checkpoint.load() if resume else None) or {"step": 0, "elapsed": 0.0, "chunks": 0}
        self.optimizer_since: int = state.get("optimizer_since", 0)
        if self.pool is not None:
            self.pool.skip(state.get("skipped", 0))
            self.pool.restore(max(state["chunks"], self.pool.count))
            self.pool.prefill(settings.pool.prefill)
        self.writer = _Writer(context.out, settings.stage, accelerator.is_main_process)
        self.ranks = RankSync(accelerator, context.started - state["elapsed"])
        self.rendered_before = self.pool.seconds if self.pool is not None else 0.0
        self.step: int = state["step"]
        self.progress = self._agree()
        self.saved = self.validated = self.progress.elapsed
        self.logged_step, self.logged_at = self.step, time.perf_counter()

    def run(self) -> dict[str, float]:
        """Steps until the stage is over, export, last validation."""
        with _stop_requests() as stop:
            while (done := _done(self.step, self.progress.elapsed, self.stage.settings)) < 1:
                self._refresh_pool()
                warm = self.step - self.optimizer_since
                lr = self.stage.settings.learning_rate * _lr_mult(warm, done, self.stage.settings.warmup)
                losses = self._take_step(lr)
                if losses is None:
                    continue
                self.progress = self._agree(stop.requested)
                self._log(losses, lr)
                if self.progress.stop:
                    self._save()
                    raise Stopped
                self._save_and_validate_when_due(stop)
        log.info("Stage %s: %d steps in %.0f s.", self.stage.settings.stage, self.step, self.progress.elapsed)
        with self.ema.applied():
            if self.accelerator.is_main_process:
                self.stage.export()
        self._save()
        return self._validate()

    def _agree(self, stop: bool = False) -> Progress:
        rendered = self.pool.seconds - self.rendered_before if self.pool is not None else 0.0
        return self.ranks.agree(self.step, rendered, stop)

    def _refresh_pool(self) -> None:
        settings, progress = self.stage.settings.pool, self.progress
        is_due = self.step % settings.refresh_every == 0 and progress.rendered < settings.share * progress.elapsed
        if self.pool is not None and is_due:
            self.pool.refresh()

    def _take_step(self, lr: float) -> dict[str, Tensor] | None:
        """The losses of one step; None where the batch did not fit and is halved from now on."""
        try:
            losses = self.stepper.losses(self.stage.batch(self.step, self.context.generator(self.step)))
        except torch.OutOfMemoryError:
            _halve(self.stage, self.accelerator.num_processes)
            self.stepper.clear()
            return None
        self.stepper.step(lr)
        self.step += 1
        return losses

    def _log(self, losses: dict[str, Tensor], lr: float) -> None:
        settings, step = self.stage.settings, self.step
        if step % settings.log_every and step != 1:
            return
        values = {name: x.detach().item() for name, x in losses.items()}
        if not all(map(math.isfinite, values.values())):
            raise TrainingError(f"Stage {settings.stage}: the loss is not finite at step {step}: {values}.")
        speed = (step - self.logged_step) / max(time.perf_counter() - self.logged_at, 1e-9)
        self.logged_step, self.logged_at = step, time.perf_counter()
        clips = self.pool.clips if self.pool is not None else 0
        self.writer.losses(step, self.progress.elapsed, lr, speed, values, clips)

    def _save_and_validate_when_due(self, stop: "_Stop") -> None:
        settings = self.stage.settings
        if self.progress.elapsed - self.saved > settings.checkpoint_seconds:
            self._save()
            self.progress = self._agree(stop.requested)
            self.saved = self.progress.elapsed
        if settings.validate_minutes and self.progress.elapsed - self.validated > 60 * settings.validate_minutes:
            self._validate()
            self.progress = self._agree(stop.requested)
            self.validated = self.progress.elapsed

    def _save(self) -> None:
        chunks, skipped = (self.pool.count, self.pool.skipped) if self.pool is not None else (0, 0)
        state = {"step": self.step, "elapsed": self.progress.elapsed, "chunks": chunks, "skipped": skipped}
        self.checkpoint.save(state | {"optimizer_since": self.optimizer_since})

    def _validate(self) -> dict[str, float]:
        with self.ema.applied(), torch.no_grad(), _eager():
            numbers = self.stage.validate()
            self.writer.validation(self.step, self.progress.elapsed, numbers)
            self.writer.sample_grid(self.stage.sample_grid(), self.step)
        return numbers


def _halve(stage: Stage, processes: int) -> None:
    """Go on with half the batch. Raises the memory error where that is nothing, and a TrainingError where other
    processes wait for this one's step.
    """
    count = stage.settings.batch // 2
    if not count:
        raise
    if processes > 1:
        raise TrainingError(
            f"Out of memory with a batch of {stage.settings.batch}, and other processes wait for this one: start again "
            f"with --set batch={count}."
        )
    log.warning("Out of memory with a batch of %d: going on with %d.", stage.settings.batch, count)
    stage.settings = replace(stage.settings, batch=count)
    torch.cuda.empty_cache()


def _done(step: int, elapsed: float, settings) -> float:
    """How much of the stage is over, 0…1: by steps or by the clock, whichever is further."""
    by_clock = elapsed / (60 * settings.minutes) if settings.minutes else 0.0
    return max(step / settings.steps, by_clock)


def _lr_mult(step: int, done: float, warmup: int) -> float:
    """`step`: since the optimisers began."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled modules run uncompiled: other sizes would be compiled anew."""
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        stop.requested = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(number, ask) for number in numbers]
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Writer:
    """What a run says of itself: `metrics.jsonl`, loss curves and sample grids."""

    def __init__(self, out: Path, stage: str, active: bool):
        self.out, self.stage, self.active = out, stage, active
        out.mkdir(parents=True, exist_ok=True)

    def losses(self, step: int, elapsed: float, lr: float, speed: float, losses: dict, clips: int) -> None:
        self._line(
            step=step,
            seconds=round(elapsed, 2),
            rate=lr,
            steps_per_second=round(speed, 3),
            clips=clips,
            losses=losses,
        )
        log.info("%s %d: loss %.4f, %.2f steps/s, %d clips", self.stage, step, losses["loss"], speed, clips)

    def validation(self, step: int, elapsed: float, numbers: dict[str, float]) -> None:
        self._line(step=step, seconds=round(elapsed, 2), validation=numbers)
        log.info("%s %d: %s", self.stage, step, ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))

    def sample_grid(self, picture: Tensor | None, step: int) -> None:
        if not self.active:
            return
        if picture is not None:
            pictures.save(picture, self.out / "samples" / f"{self.stage}.png")
        pictures.curves(self.out / "metrics.jsonl", self.stage, self.out / "samples" / f"{self.stage}_loss.png")

    def _line(self, **content) -> None:
        if self.active:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self.stage} | content) + "\n")


def parameters(module: nn.Module) -> int:
    """How many of a module's parameters are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
