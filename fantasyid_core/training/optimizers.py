"""How trained parameters step: AdamW, and Muon (Jordan et al. 2024) for the hidden matrices that a stage names."""

from collections.abc import Iterable

import torch
from torch import nn

from .muon import Muon
from .settings import Settings

SMALLEST = 32  # rows and columns of a matrix that is worth orthogonalising


def optimizers(trained: Iterable[nn.Parameter], hidden: Iterable[nn.Module], settings: Settings) -> list:
    """One or two optimisers; a Muon step is scaled to AdamW's usual size, so that both share a learning rate.

    Args:
        trained: all parameters that shall step.
        hidden: modules whose matrices Muon takes where `settings.muon` asks for it.
    """
    trained = list(trained)
    wanted = {id(p) for module in hidden for p in module.parameters() if p.ndim == 2 and min(p.shape) >= SMALLEST}
    matrices = [p for p in trained if settings.muon and id(p) in wanted]
    taken = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in taken]
    rate, decay = settings.learning_rate, settings.weight_decay
    fused = bool(rest) and rest[0].device.type == "cuda"
    made: list = [torch.optim.AdamW(rest, lr=rate, betas=settings.betas, weight_decay=decay, fused=fused)]
    if matrices:
        made.append(Muon(matrices, rate, decay))
    return made
