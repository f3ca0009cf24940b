"""What a row holds, and how time and memory are taken."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

GIB = 2**30
STEP, PHASE, MEMORY = KINDS = ("step", "phase", "memory")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: what was measured.
        milliseconds: of a denoising step with both guidance branches (median after warm-up), or of the whole phase.
        peak: most GPU memory that torch held meanwhile, GiB; 0 on a CPU. Of a MEMORY row: what its note says.
        error: relative difference of the result to the exact one, or None where there is nothing to compare with.
        note: anything a reader must know.
        kind: STEP, PHASE (a part of a whole run) or MEMORY (of the computer, not of the card).
    """

    name: str
    milliseconds: float
    peak: float
    error: float | None = None
    note: str = ""
    kind: str = STEP


def time_step(name: str, step: Callable[[], Tensor], repeats: int = 3, warm_up: int = 2) -> Row:
    """Median and peak of `step`, run by itself; the first call is named where it took long, as with a compiler."""
    reset_peak()
    first = _timed(step)
    for _ in range(warm_up - 1):
        step()
    milliseconds = 1000 * statistics.median(_timed(step) for _ in range(repeats))
    return Row(name, milliseconds, peak(), note=first_step(first, milliseconds))


def first_step(first: float, milliseconds: float, always: bool = False) -> str:
    """A note on a first step of `first` seconds: always, or where it took five times as long as the later ones."""
    slow = first > 5 and first > 5 * milliseconds / 1000
    return f"first step {first:.0f} s" if always or slow else ""


@dataclass
class Phase:
    """Seconds and peak of a `with phase(…)` block, after it."""

    seconds: float = 0.0
    peak: float = 0.0
    ends: list[float] = field(default_factory=list)
    """Where the block reported steps: when each ended, seconds since the block began."""


@contextmanager
def phase(less: int = 0) -> Iterator[Phase]:
    """Time and peak of a block. `less`: bytes on the card that the benchmark itself occupies."""
    found = Phase()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    start = time.perf_counter()
    try:
        yield found
    finally:
        synchronize()
        found.seconds, found.peak = time.perf_counter() - start, peak(less)
        found.ends = [end - start for end in found.ends]


def _timed(step: Callable[[], Tensor]) -> float:
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(less: int = 0) -> float:
    """GiB at the peak since `reset_peak`, less bytes that a benchmark itself occupied."""
    return (torch.cuda.max_memory_allocated() - less) / GIB if torch.cuda.is_available() else 0.0


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """‖ours − exact‖ / ‖exact‖."""
    return ((ours.float() - exact.float()).norm() / exact.float().norm()).item()
