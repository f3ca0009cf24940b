"""How trained parameters step: AdamW, and Muon (Jordan et al. 2024) for the hidden matrices that a stage names."""

import logging
from collections.abc import Iterable

import torch
from torch import nn

from .settings import Settings

log = logging.getLogger(__name__)
SMALLEST = 32  # rows and columns of a matrix that is worth orthogonalising


def optimizers(trained: Iterable[nn.Parameter], hidden: Iterable[nn.Module], settings: Settings) -> list:
    """One or two optimisers; a Muon step is scaled to AdamW's usual size, so that both share a learning rate.

    Args:
        trained: all parameters that shall step.
        hidden: modules whose matrices Muon takes where `settings.muon` asks for it and torch has it (2.9).
    """
    trained = list(trained)
    wanted = {id(p) for module in hidden for p in module.parameters() if p.ndim == 2 and min(p.shape) >= SMALLEST}
    matrices: list[nn.Parameter] = []
    if settings.muon and hasattr(torch.optim, "Muon"):
        matrices = [p for p in trained if id(p) in wanted]
    elif settings.muon:
        log.warning("This torch (%s) has no Muon: AdamW takes all parameters.", torch.__version__)
    taken = {id(p) for p in matrices}
    rest = [p for p in trained if id(p) not in taken]
    rate, decay = settings.learning_rate, settings.weight_decay
    fused = bool(rest) and rest[0].device.type == "cuda"
    made: list = [torch.optim.AdamW(rest, lr=rate, betas=settings.betas, weight_decay=decay, fused=fused)]
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return made
