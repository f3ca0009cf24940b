"""What the benchmarks of one run share: the model's size, its inputs, the host, the exact latents."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from .ours import Host
from .workload import Inputs, Workload, random_inputs, random_published


@dataclass(eq=False)
class Bench:
    """What the modes of one run share; made when first asked for.

    Attributes:
        base: an empty folder, the host's base directory.
        folder: where the random model's files lie or are written to, for whole runs.
        steps: denoising steps of a whole run that are really done.
        known: exact latents by number of steps, as far as they were computed.
    """

    work: Workload
    device: str
    base: Path
    folder: Path
    steps: int
    host_arguments: tuple[str, ...] = ()
    known: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def published(self):
        return random_published(self.work)

    @cached_property
    def inputs(self) -> Inputs:
        return random_inputs(self.work, self.device)

    @cached_property
    def host(self) -> Host:
        # The host's own attention for CPUs reads the free memory, and is compiled anew when that has changed.
        on_cpu = ("--cpu", "--use-pytorch-cross-attention")
        arguments = on_cpu if self.device == "cpu" else self.host_arguments
        return Host(self.base, self.work, lambda: self.published, self.inputs, *arguments)

    def exact(self, steps: int) -> Tensor:
        """The exact latents after so many steps, which the others' errors are told from."""
        if steps not in self.known:
            self.host.forget()
            self.known[steps] = self.host.run("", self.host.model(), steps=steps)[1]
            self.host.forget()
        return self.known[steps]
