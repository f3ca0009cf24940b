"""Whose face it will be, asked half-way through the DiT: a loss that teaches to read the identity before pixels do.

Who somebody is decides little of the velocity (a wrong person's identity costs 2 % of it half-way through the noise and
8 % near its end), and nearly all of that is skin. As `structure` does for places, a middle layer is asked for what is
known of the person: shape code and look, at the face and whatever the noise. The head is thrown away.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .face import moves, squared_mm

SHAPE_WEIGHT = 0.1  # of squared millimetres, as the image tower learns it


class Who(nn.Module):
    """Visual tokens (B, t·h·w, D) → shape code and look of the person, from the mean of the face's tokens.

    Args:
        width: D; looks: L, entries of a look.
        shape_basis: (V, 3, ≥ 100) of the face model, metres.
    """

    def __init__(self, width: int, looks: int, shape_basis: Tensor):
        super().__init__()
        self.sizes = (100, looks)
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, sum(self.sizes))
        )
        self.register_buffer("shape_moves", moves(shape_basis[..., :100]), persistent=False)

    def forward(self, visual: Tensor, face: Tensor, shape: Tensor, look: Tensor, present: Tensor | None) -> Tensor:
        """Error of the code in mm² of the vertices, weighted, and of the look; mean over the samples.

        Args:
            face: (B, t, h·p, w·p) 0…1, where the face is in latents of p × p per token.
            shape: (B, 100); look: (B, L); present: (B,) 0 for samples without an identity, which are not asked.
        """
        patch = round((face[0].numel() / visual.shape[1]) ** 0.5)
        weight = F.avg_pool2d(face, patch).flatten(1)[..., None]
        pooled = (visual.float() * weight).sum(1) / weight.sum(1).clamp(min=1e-3)
        told_shape, told_look = self.layers(pooled).float().split(self.sizes, 1)
        if present is not None:
            keep = present[:, None]
            told_shape, told_look, shape, look = (x * keep for x in (told_shape, told_look, shape, look))
        return SHAPE_WEIGHT * squared_mm(told_shape - shape, self.shape_moves) + (told_look - look).square().mean()
