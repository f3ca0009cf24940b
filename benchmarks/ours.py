"""FantasyID's modes through the real host: its model management, its sampler, its streaming."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.fusion.checkpoint import Published

from .measure import GIB, Row, first_step, peak, relative_error, reset_peak, synchronize
from .workload import Inputs, Workload

STEPS = 5


class Host:
    """The host in this process, with one workload's random model. Make one per process, before importing `comfy`."""

    def __init__(self, base: Path, work: Workload, published: Callable[[], Published], inputs: Inputs, *arguments: str):
        from tools.in_process import start

        start(base, *arguments)
        self.work, self.published = work, published
        frames, height, width = work.latents
        generator = torch.Generator().manual_seed(2)
        self.noise = torch.randn(1, 16, frames, height, width, generator=generator)
        self.first = torch.randn(1, 16, 1, height, width, generator=generator)
        self.text = inputs.text.float().cpu()
        self.tokens = inputs.tokens.float().cpu()

    def model(self, weight_dtype: str = "default", identity: bool = True, published: Published | None = None):
        """A fresh MODEL, with or without an identity, of `published` if its weights are to be others."""
        from pack.fantasyid_core.dit.injection import Injection
        from pack.nodes.host.model import load_model
        from pack.nodes.host.options import add_injection

        model = load_model(self.work.config, published or self.published(), weight_dtype)
        return add_injection(model, Injection(self.tokens)) if identity else model

    def compiled(self, model):
        """The same MODEL after the host's node TorchCompileModel."""
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        return TorchCompileModel.execute(model, "inductor").args[0]

    def run(
        self,
        name: str,
        model,
        exact: Tensor | None = None,
        occupied: int = 0,
        *,
        note: str = "",
        steps: int = STEPS,
        amortised: bool = False,
        tell_first: bool = False,
    ) -> tuple[Row, Tensor]:
        """Sample with the stock DDIM sampler: median of the steps after the first two, peak, latents.

        Args:
            exact: latents to compare with.
            occupied: bytes on the card that the benchmark itself takes.
            steps: few, from the first to the last timestep.
            amortised: the mean of the steps after the first instead.
            tell_first: name the seconds of the first step, whatever they are.
        """
        import comfy.samplers
        from pack.nodes.sampling import trailing_sigmas

        ends = []

        def callback(*_) -> None:
            synchronize()
            ends.append(time.perf_counter())

        guider = comfy.samplers.CFGGuider(model)
        image = {"concat_latent_image": self.first}
        guider.set_conds([[self.text[:1], dict(image)]], [[self.text[1:], dict(image)]])
        guider.set_cfg(6.0)
        reset_peak()
        synchronize()
        start = time.perf_counter()
        sampler, sigmas = comfy.samplers.sampler_object("ddim"), trailing_sigmas(model, steps)
        latents = guider.sample(
            self.noise, torch.zeros_like(self.noise), sampler, sigmas, callback=callback, seed=0, disable_pbar=True
        )
        if amortised:
            milliseconds = 1000 * (ends[-1] - ends[0]) / (len(ends) - 1)
        else:
            milliseconds = 1000 * statistics.median(b - a for a, b in pairwise(ends[1:]))
        error = None if exact is None else relative_error(latents, exact)
        first = first_step(ends[0] - start, milliseconds, tell_first)
        note = "; ".join(filter(None, (note, first)))
        return Row(name, milliseconds, peak(occupied), error, note), latents

    def forget(self) -> None:
        """Unload all models, so that the next mode starts from an empty card."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        gc.collect()
        reset_peak()

    @contextmanager
    def only_free(self, gib: float) -> Iterator[int]:
        """Occupy the card so that `gib` remain free; yields the bytes taken."""
        self.forget()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(max(0, int(free - gib * GIB)), dtype=torch.uint8, device="cuda")
        try:
            yield taken.nbytes
        finally:
            del taken
            self.forget()
