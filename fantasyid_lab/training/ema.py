"""Averaged weights: what is exported and looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's trained parameters and of its floating-point buffers.

    Args:
        decay: at most; it begins lower, so that the first steps are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self._live = dict(_averaged(module))
        self.shadow = {name: x.detach().float().clone() for name, x in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the module in."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [x.detach().to(s.dtype) for x, s in zip(self._live.values(), self.shadow.values(), strict=True)]
        torch._foreach_lerp_(list(self.shadow.values()), live, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module with the averaged weights, then with its own again."""
        own = {name: x.detach().clone() for name, x in self._live.items()}
        self._put(self.shadow)
        try:
            yield
        finally:
            self._put(own)

    def adopt(self) -> None:
        """Make the averaged weights the module's own."""
        self._put(self.shadow)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return dict(self.shadow)

    def restore(self, state: dict[str, Tensor], updates: int) -> None:
        """From a checkpoint."""
        self.updates = updates
        for name, x in self.shadow.items():
            x.copy_(state[name])

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, x in self._live.items():
            x.copy_(values[name])


def _averaged(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, p) for name, p in module.named_parameters() if p.requires_grad)
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent and buffer.is_floating_point():
            yield name, buffer
