"""What all processes of a run have to see alike: else one would take a step that the others do not, and wait."""

import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

EVERY = 20  # steps between two agreements: each waits for the queue of kernels


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
        began: what `time.perf_counter` said when the stage began.
    """

    def __init__(self, accelerator: Accelerator, began: float):
        self.accelerator, self.began = accelerator, began
        self._agreed: Progress | None = None

    def agree(self, step: int, rendered: float, stop: bool) -> Progress:
        """The progress at a step, for which every process gives its own view: means of the times, and whether any was
        asked to stop. Between agreements it stays as it was.
        """
        mine = Progress(time.perf_counter() - self.began, rendered, stop)
        if self.accelerator.num_processes == 1:
            return mine
        if self._agreed is None or step % EVERY == 0:
            own_view = torch.tensor([mine.elapsed, rendered, float(stop)], device=self.accelerator.device)
            elapsed, rendered, stopping = self.accelerator.reduce(own_view, "mean").tolist()
            self._agreed = Progress(elapsed, rendered, stopping > 0)
        return self._agreed
