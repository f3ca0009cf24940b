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
from .ema import Ema
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
    settings, context = stage.settings, stage.context
    stepper = Stepper(stage, accelerator)
    ema = stepper.ema
    checkpoint = Checkpoint(context.out / "checkpoints" / settings.stage, accelerator, stage.objective, ema)
    progress = (checkpoint.load() if resume else None) or {"step": 0, "elapsed": 0.0, "chunks": 0}
    start_time = context.started - progress["elapsed"]
    pool = context.pool
    if pool is not None:
        pool.restore(max(progress["chunks"], pool.count))
        pool.prefill(settings.pool.prefill)
    writer = _Writer(context.out, settings.stage, accelerator.is_main_process)
    ranks = RankSync(accelerator, start_time)
    rendered_before = pool.seconds if pool is not None else 0.0
    step = progress["step"]

    def progress_now(stop: bool = False) -> Progress:
        return ranks.agree(step, pool.seconds - rendered_before if pool is not None else 0.0, stop)

    def state() -> dict:
        return {"step": step, "elapsed": now.elapsed, "chunks": pool.count if pool is not None else 0}

    now = progress_now()
    saved = validated = now.elapsed
    logged_step, logged_at = step, time.perf_counter()
    losses: dict[str, Tensor] = {}
    try:
        with _stop_requests() as stop:
            while (done := _done(step, now.elapsed, settings)) < 1:
                lr = settings.learning_rate * _lr_mult(step, done, settings.warmup)
                due = step % settings.pool.refresh_every == 0 and now.rendered < settings.pool.share * now.elapsed
                if pool is not None and due:
                    pool.refresh()
                try:
                    losses = stepper.losses(stage.batch(step, context.generator(step)))
                except torch.OutOfMemoryError:
                    _halve(stage, accelerator.num_processes)
                    stepper.clear()
                    continue
                stepper.step(lr)
                step += 1
                now = progress_now(stop.requested)
                if step % settings.log_every == 0 or step == 1:
                    values = {name: x.detach().item() for name, x in losses.items()}
                    if not all(map(math.isfinite, values.values())):
                        raise TrainingError(f"Stage {settings.stage}: the loss is not finite at step {step}: {values}.")
                    speed = (step - logged_step) / max(time.perf_counter() - logged_at, 1e-9)
                    logged_step, logged_at = step, time.perf_counter()
                    writer.losses(step, now.elapsed, lr, speed, values, pool.clips if pool is not None else 0)
                if now.stop:
                    checkpoint.save(state())
                    raise Stopped
                if now.elapsed - saved > settings.checkpoint_seconds:
                    checkpoint.save(state())
                    now = progress_now(stop.requested)
                    saved = now.elapsed
                if settings.validate_minutes and now.elapsed - validated > 60 * settings.validate_minutes:
                    _validate(stage, ema, writer, step, now.elapsed)
                    now = progress_now(stop.requested)
                    validated = now.elapsed
        log.info("Stage %s: %d steps in %.0f s.", settings.stage, step, now.elapsed)
        with ema.applied():
            if accelerator.is_main_process:
                stage.export()
        checkpoint.save(state())
        return _validate(stage, ema, writer, step, now.elapsed)
    finally:
        checkpoint.close()
        accelerator.free_memory()


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


def _validate(stage: Stage, ema: Ema, writer: "_Writer", step: int, elapsed: float) -> dict[str, float]:
    with ema.applied(), torch.no_grad(), _eager():
        numbers = stage.validate()
        writer.validation(step, elapsed, numbers)
        writer.sample_grid(stage.sample_grid(), step)
    return numbers


def _done(step: int, elapsed: float, settings) -> float:
    """How much of the stage is over, 0…1: by steps or by the clock, whichever is further."""
    by_clock = elapsed / (60 * settings.minutes) if settings.minutes else 0.0
    return max(step / settings.steps, by_clock)


def _lr_mult(step: int, done: float, warmup: int) -> float:
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
            pictures.save(picture, self.out / "sheets" / f"{self.stage}.png")
        pictures.curves(self.out / "metrics.jsonl", self.stage, self.out / "sheets" / f"{self.stage}_loss.png")

    def _line(self, **content) -> None:
        if self.active:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self.stage} | content) + "\n")


def parameters(module: nn.Module) -> int:
    """How many of a module's parameters are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
