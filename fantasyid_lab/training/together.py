"""What all processes of a run have to see alike: else one would take a step that the others do not, and wait."""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

EVERY = 20  # steps between two agreements: each waits for the queue of kernels


@dataclass(frozen=True)
class Moment:
    """How far a stage is.

    Attributes:
        elapsed, rendered: seconds since it began, and how many of them went into rendering.
        stop: whether it was asked to end.
    """

    elapsed: float
    rendered: float
    stop: bool


class Together:
    """The moment that the processes of a run agree on; with one process always the present one.

    Args:
        began: what `time.perf_counter` said when the stage began.
    """

    def __init__(self, accelerator: Accelerator, began: float):
        self.accelerator, self.began = accelerator, began
        self._seen: Moment | None = None

    def at(self, step: int, rendered: float, stop: bool) -> Moment:
        """The moment of a step, for which every process tells its own view: means of the times, and whether any was
        asked to stop. Between agreements it stays as it was.
        """
        mine = Moment(time.perf_counter() - self.began, rendered, stop)
        if self.accelerator.num_processes == 1:
            return mine
        if self._seen is None or step % EVERY == 0:
            told = torch.tensor([mine.elapsed, rendered, float(stop)], device=self.accelerator.device)
            elapsed, rendered, stopping = self.accelerator.reduce(told, "mean").tolist()
            self._seen = Moment(elapsed, rendered, stopping > 0)
        return self._seen
