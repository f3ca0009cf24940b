"""One step of training: losses, gradients, optimisers, averaged weights."""

import logging
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from .ema import Ema
from .optimizers import optimizers
from .stage import Batch, Stage

log = logging.getLogger(__name__)


class Stepper:
    """Steps what a stage trains; compiles what it names first, where its settings ask for that.

    Attributes:
        ema: the averaged weights.
    """

    def __init__(self, stage: Stage, accelerator: Accelerator):
        settings, objective = stage.settings, stage.objective
        self._accelerator, self._clip_norm = accelerator, settings.clip_norm
        self._trained = [p for p in objective.parameters() if p.requires_grad]
        if settings.compile and stage.context.device.type == "cuda":
            _compile_parts(stage)
        self._module, *self._optimizers = accelerator.prepare(
            objective, *optimizers(self._trained, stage.muon_parameters(), settings, stage.lr_mults())
        )
        self.ema = Ema(objective, settings.ema)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's losses of a batch, whose gradients are there afterwards."""
        losses = self._module(batch)
        self._accelerator.backward(losses["loss"])
        return losses

    def step(self, lr: float) -> None:
        """Take the gradients' step at a learning rate; they are gone afterwards."""
        self._accelerator.clip_grad_norm_(self._trained, self._clip_norm)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["factor"]
            optimizer.step()
        self.clear()
        self.ema.update()

    def clear(self) -> None:
        """Forget the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)


def _compile_parts(stage: Stage) -> None:
    """Compile what the stage names, where that works; a failure costs speed, not the run."""
    modules = stage.compile()
    if not modules:
        return
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.cache_size_limit = 64
    torch._dynamo.config.optimize_ddp = False  # blocks are small graphs already: gradients are sent between them
    torch._dynamo.config.automatic_dynamic_shapes = False  # single frames and videos: a graph each, not a slower one
    for module in modules:
        module.compile()
    if stage.context.pool is not None:
        stage.context.pool.prefill(1)  # a stage that is the run's first has none yet
    start_time = time.perf_counter()
    try:
        with stage.context.autocast():
            batch = stage.batch(0, stage.context.generator(0))
            stage.objective(batch)["loss"].backward()
        log.info("Compiled %d modules in %.0f s.", len(modules), time.perf_counter() - start_time)
    except Exception as error:
        log.warning("The modules do not compile (%s: %s); they run as they are.", type(error).__name__, error)
        for module in modules:
            module._compiled_call_impl = None
    stage.objective.zero_grad(set_to_none=True)
