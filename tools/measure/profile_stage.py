"""`python -m tools.measure.profile_stage STAGE`: what a training step and a chunk of rendering wait for.

Prints, for steps on clips and on photos where a stage knows both: wall time, what the host takes to start the kernels,
how many these are and how long they run, and the longest of them; then the same of a chunk of the pool.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fantasyid_lab import nano
from fantasyid_lab.training import settings
from fantasyid_lab.training.run import STAGES, Run
from fantasyid_lab.training.stage import Stage
from fantasyid_lab.training.stepper import Stepper

RATE = 1e-5  # the weights hardly move


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    stage_settings = settings.read(settings.HERE / f"{options.stage}.toml", options.set)
    with tempfile.TemporaryDirectory() as nothing_is_written:
        run = Run(Path(nothing_is_written), start_from=options.model)
        stage = run.stage(stage_settings)
    stage.context.pool.prefill(stage_settings.pool.people)
    step = _step(stage, run.accelerator)
    if not hasattr(stage_settings.options, "pictures"):
        _report(f"step, batch {stage_settings.batch}", step, options.steps)
    else:
        for kind, share in {"clips": 0.0, "photos": 1.0}.items():
            with _photos(stage, share):
                _report(f"step on {kind}, batch {stage_settings.batch}", step, options.steps)
    _report("chunk of the pool", lambda number: stage.context.pool.add(), max(1, options.steps // 5))


def _step(stage: Stage, accelerator: Accelerator) -> Callable[[int], None]:
    """One step as `training.loop` takes it."""
    stepper = Stepper(stage, accelerator)

    def step(number: int) -> None:
        stepper.losses(stage.batch(number, stage.context.generator(number)))
        stepper.step(RATE)

    return step


@contextmanager
def _photos(stage: Stage, share: float) -> Iterator[None]:
    """The stage's steps with this share of photos, then as before."""
    batches = getattr(stage, "source", stage)
    before = batches.options
    batches.options = replace(before, pictures=share)
    try:
        yield
    finally:
        batches.options = before


def _report(name: str, run: Callable[[int], object], count: int) -> None:
    for number in range(3):
        run(number)
    _wait()
    began = time.perf_counter()
    for number in range(count):
        run(number)
    host = (time.perf_counter() - began) / count
    _wait()
    wall = (time.perf_counter() - began) / count
    print(f"{name}: {1e3 * wall:.1f} ms; the host is done after {1e3 * host:.1f}")
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
        for number in range(count):
            run(number)
        _wait()
    on_device = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    kernels = [event for event in on_device if not event.is_user_annotation]  # such as a whole optimizer's step
    if kernels:
        busy = sum(event.self_device_time_total for event in kernels)
        print(f"  {len(kernels) / count:.0f} kernels, {busy / 1e3 / count:.1f} ms of them")
    by = "self_cuda_time_total" if kernels else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=12, max_name_column_width=70))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.measure.profile_stage", description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--model", type=Path, default=nano.SHIPPED, help="folder to start from (the shipped model)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the stage")
    parser.add_argument("--steps", type=int, default=20, help="how many are measured (20)")
    return parser


if __name__ == "__main__":
    main()
