"""What all processes of a run have to see alike: else one would take a step that the others do not, and wait."""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

AGREE_EVERY = 20  # steps between two agreements: each waits for the queue of kernels


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        elapsed, rendered: seconds since it began, and how many of them went into rendering.
        stop: whether it was asked to end.
    """

    elapsed: float
    rendered: float
    stop: bool


class RankSync:
    """What the processes of a run agree on; with one process always its own view.

    Args:
        start_time: what `time.perf_counter` said when the stage began.
    """

    def __init__(self, accelerator: Accelerator, start_time: float):
        self.accelerator, self.start_time = accelerator, start_time
        self._agreed: Progress | None = None

    def agree(self, step: int, rendered: float, stop: bool) -> Progress:
        """The progress at a step, for which every process gives its own view: means of the times, and whether any was
        asked to stop. Between agreements it stays as it was.
        """
        mine = Progress(time.perf_counter() - self.start_time, rendered, stop)
        if self.accelerator.num_processes == 1:
            return mine
        if self._agreed is None or step % AGREE_EVERY == 0:
            values = torch.tensor([mine.elapsed, rendered, float(stop)], device=self.accelerator.device)
            elapsed, rendered, stopping = self.accelerator.reduce(values, "mean").tolist()
            self._agreed = Progress(elapsed, rendered, stopping > 0)
        return self._agreed
