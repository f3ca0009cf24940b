"""Dense landmarks in photos of a person → where the points are on the person's own face, at rest, in metres.

What the landmark network reads lies off the surface in ways that repeat from photo to photo of a person, so that a fit
alone takes them for the person's shape. A small network that learned from readings of 11,000 rendered people sees the
person behind them. Its photos are pooled: any number of them gives one shape.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

from ..detection import dense_features

_FEATURES, _WIDTH, _SHAPES = 200, 256, 100


class ShapeNetwork(nn.Module):
    """Features (P, N, 200) of N photos of P people with their shares (P, N) → (P, 100) shapes of the lab's head."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(_FEATURES, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU())
        self.rho = nn.Sequential(nn.Linear(_WIDTH + 1, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _SHAPES))
        self.lin = nn.Linear(_FEATURES, _SHAPES)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        alone = share.square().sum(-1, keepdim=True)  # 1 / N where all count alike
        pooled, mean = ((share[..., None] * part).sum(1) for part in (self.phi(x), x))
        return self.rho(torch.cat([pooled, alone], 1)) + self.lin(mean)


@lru_cache(maxsize=4)
def load(device: torch.device) -> ShapeNetwork:
    """The network on `device`, read once."""
    network = ShapeNetwork()
    network.load_state_dict(dense_features.state_of("shape", device))
    return network.requires_grad_(False).eval().to(device)


@torch.no_grad()
def points_at_rest(points: Tensor, confidence: Tensor | None = None) -> Tensor:
    """Where a person's face has its dense landmarks, seen from the front, without expression.

    Args:
        points: (P, N, 478, 3) px as `detection.dense_landmarks.read` finds them in N photos of each of P people.
        confidence: (P, N) 0…1, how much each photo counts; all alike if None.

    Returns:
        (P, 478, 3) metres, y up, z out of the face.
    """
    arrays, network = dense_features.load(points.device), load(points.device)
    share = (
        points.new_ones(points.shape[:2], dtype=torch.float32) if confidence is None else confidence.to(arrays["rest"])
    )
    share = share.clamp(min=1e-6)
    share = share / share.sum(-1, keepdim=True)
    plain, mirrored = (network(dense_features.features(points, mirrored=way), share) for way in (False, True))
    shape = (plain + mirrored @ arrays["mirroredshapes"].mT) / 2
    return arrays["rest"] + torch.einsum("lxs,ps->plx", arrays["shapes"], shape)
