"""Landmark auxiliary loss: a block half-way through the DiT predicts where the face will be, long before pixels do.

In the spirit of REPA (Yu et al. 2024), which aligns a middle layer with a pretrained network's features of the clean
picture; here the truth is known, so the layer predicts the 68 landmarks. The head is not exported.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pool import pool_points_in_time

SPREAD = 0.6  # cells, how blurred a landmark's place is


class LandmarkLoss(nn.Module):
    """Visual tokens (B, t·h·w, D) → for every latent frame and landmark the logits of the cell that it lies in."""

    def __init__(self, width: int, landmarks: int = 68):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, landmarks)
        )

    def forward(self, hidden_states: Tensor, landmarks: Tensor, cells: tuple[int, int, int]) -> Tensor:
        """Mean cross entropy against the true cells, nats.

        Args:
            landmarks: (B, T, 68, 2) in cells of the token grid, integers in the middle of cells; T = 4 t − 3 frames.
            cells: t, h, w of the tokens.
        """
        predicted = self.layers(hidden_states).float().unflatten(1, cells).flatten(2, 3)  # (B, t, h·w, 68)
        true = landmark_heatmaps(pool_points_in_time(landmarks), *cells[1:])
        return -(true * predicted.log_softmax(2)).sum(2).mean()


def landmark_heatmaps(landmarks: Tensor, height: int, width: int) -> Tensor:
    """Landmarks (B, t, L, 2) in cells → (B, t, height·width, L), each a blurred one over the cells."""
    across, down = (torch.arange(n, device=landmarks.device, dtype=torch.float32) for n in (width, height))
    x = (across[:, None] - landmarks[..., None, :, 0]).square()  # (B, t, w, L)
    y = (down[:, None] - landmarks[..., None, :, 1]).square()
    log_heatmaps = -(y[..., :, None, :] + x[..., None, :, :]) / (2 * SPREAD * SPREAD)
    return F.softmax(log_heatmaps.flatten(2, 3), 2)
