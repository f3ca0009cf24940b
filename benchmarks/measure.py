"""Time and peak memory of a step."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One mode.

    Attributes:
        name: what was measured.
        milliseconds: median of a denoising step after warm-up, both guidance branches.
        peak: most GPU memory that torch held meanwhile, GiB; 0 on a CPU.
        error: relative difference of the result to the exact one, or None where there is nothing to compare with.
        note: anything a reader must know.
    """

    name: str
    milliseconds: float
    peak: float
    error: float | None = None
    note: str = ""


def time_step(name: str, step: Callable[[], Tensor], repeats: int = 5, warm_up: int = 2) -> Row:
    """Median and peak of `step`, run by itself."""
    reset_peak()
    for _ in range(warm_up):
        step()
    return Row(name, 1000 * statistics.median(_timed(step) for _ in range(repeats)), peak())


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
