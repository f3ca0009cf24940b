"""From the pool's bytes to what networks read: randomness, jitter, other framings, on the pictures' device."""

import torch
from torch import Tensor

from ..people.batching import constant
from ..people.crops import sample


def rand(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform in 0…1 on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def randn(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def randint(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    """0…high − 1 on the generator's device."""
    return torch.randint(high, shape, generator=generator, device=generator.device)


def jitter(generator: torch.Generator, count: int, amount: float = 1.0) -> Tensor:
    """(count, 4) shifts as a detector's landmarks make them: 1.2 % of the crop, 4 % of size, 2 degrees."""
    return amount * randn(generator, count, 4) * constant((0.012, 0.012, 0.04, 2.0), generator.device)


def reframe(pictures: Tensor, landmarks: Tensor, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, H, W, 3) uint8 as photos of other framings squeezed to a square.

    Returns:
        (B, size, size, 3) float 0…1, and the landmarks (B, N, 2) in px of them.
    """
    count, side = len(pictures), pictures.shape[1]
    middle = (side - 1) / 2
    zoom = torch.exp(torch.log(torch.tensor(0.75)) + rand(generator, count, 1) * 0.65)  # 0.75 … 1.44
    stretch = torch.exp(0.12 * randn(generator, count, 1))
    scale = torch.cat([zoom * stretch, zoom / stretch], 1) * (size / side)  # output px per picture px
    focus = middle + (landmarks[:, :5].mean(1) - middle) * rand(generator, count, 1)
    focus = focus + 0.06 * side * randn(generator, count, 2)
    grid = torch.arange(size, device=pictures.device, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    grid = torch.stack([x, y], -1) / scale[:, None, None] + focus[:, None, None]
    framed_landmarks = (landmarks - focus[:, None]) * scale[:, None] + (size - 1) / 2
    return sample(pictures, grid), framed_landmarks
