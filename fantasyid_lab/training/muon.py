"""Muon (Jordan et al. 2024) for many matrices at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, Keller Jordan's
ITERATIONS, TINY = 5, 1e-7


class Muon(torch.optim.Optimizer):
    """The steps of `torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`, which orthogonalises
    matrix by matrix: on a GPU thousands of small kernels a step. Here matrices of one shape are stacked.

    Args:
        params: matrices, or groups of them.
        lr: as AdamW's would be.
    """

    def __init__(self, params: Iterable, lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Step all matrices that have a gradient. `closure` is there for accelerate, which hands one on."""
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for same in alike.values():
                self._step(same, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, params: list[Tensor], lr: float, decay: float, momentum: float) -> None:
        """Matrices of one shape, dtype and device."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        averages, grads = [self.state[p]["momentum_buffer"] for p in params], [p.grad for p in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        updates = (
            orthogonal(torch.stack(torch._foreach_lerp(grads, averages, momentum))).to(params[0].dtype).contiguous()
        )
        torch._foreach_mul_(params, 1 - lr * decay)
        scale = 0.2 * max(params[0].shape) ** 0.5  # a step's root mean square is then AdamW's
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, A, B) → bfloat16, near U Vᵀ of each matrix's U S Vᵀ, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    high = x.shape[1] > x.shape[2]
    x = x.mT if high else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if high else x
