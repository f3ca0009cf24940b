"""How trained parameters step: AdamW, and Muon (Jordan et al. 2024) for the matrices that a stage names."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .muon import Muon
from .settings import Settings

SMALLEST = 32  # rows and columns of a matrix that is worth orthogonalising


def optimizers(
    parameters: Iterable[nn.Parameter],
    muon_parameters: Iterable[nn.Parameter],
    settings: Settings,
    lr_mults: Mapping[nn.Module, float] | None = None,
) -> list:
    """One or two optimisers; a Muon step is scaled to AdamW's usual size, so that both share a learning rate. Every
    group of parameters has a `factor` on it.

    Args:
        parameters: all that shall step.
        muon_parameters: those whose matrices Muon takes where `settings.muon` asks for it.
        lr_mults: factors on the learning rate of some modules' parameters; 1 for what is not among them. A later one
            counts where modules lie in each other.
    """
    parameters = list(parameters)
    muon_ids = {id(p) for p in muon_parameters if p.ndim == 2 and min(p.shape) >= SMALLEST}
    matrices = [p for p in parameters if settings.muon and id(p) in muon_ids]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in matrix_ids]
    lr, decay = settings.learning_rate, settings.weight_decay
    factors = {id(p): factor for module, factor in (lr_mults or {}).items() for p in module.parameters()}
    fused = bool(others) and others[0].device.type == "cuda"
    adamw = torch.optim.AdamW(_groups(others, factors), lr=lr, betas=settings.betas, weight_decay=decay, fused=fused)
    return [adamw, Muon(_groups(matrices, factors), lr, decay)] if matrices else [adamw]


def _groups(parameters: Iterable[nn.Parameter], factors: Mapping[int, float]) -> list[dict]:
    """Parameters of one factor (by `id`) each in a group."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for p in parameters:
        by_factor.setdefault(factors.get(id(p), 1.0), []).append(p)
    return [{"params": members, "factor": factor} for factor, members in by_factor.items()]
