"""From the pool's bytes to what networks read: aligned crops, framings and mild damage, all on the pictures' device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.detection.alignment import BORDER_GREY

from ..people.camera import face_crop


def rand(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform in 0…1 on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)


def randn(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def randint(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    """0…high − 1 on the generator's device."""
    return torch.randint(high, shape, generator=generator, device=generator.device)


def align(pictures: Tensor, landmarks: Tensor, size: int, shifts: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) uint8 and landmarks (B, ≥ 5, 2) px → FFHQ crops (B, size, size, 3) float 0…1.

    Args:
        shifts: (B, 4) as `people.camera.face_crop` takes them.
    """
    return sample(pictures, crop_grid(landmarks, size, shifts))


def crop_grid(landmarks: Tensor, size: int, shifts: Tensor) -> Tensor:
    """Where the pixels of such crops lie in the pictures: (B, size, size, 2) px."""
    matrix = face_crop(landmarks[:, :5], shifts, size)
    inverse = torch.linalg.inv_ex(matrix[..., :2])[0]  # does not wait for the device
    grid = torch.arange(size, device=landmarks.device, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    grid = torch.stack([x, y], -1).flatten(0, 1)  # crop px
    grid = (grid - matrix[:, None, :, 2]) @ inverse.mT
    return grid.unflatten(1, (size, size))


def jitter(generator: torch.Generator, count: int, amount: float = 1.0) -> Tensor:
    """(count, 4) shifts as a detector's landmarks make them: 1.2 % of the crop, 4 % of size, 2 degrees."""
    return amount * randn(generator, count, 4) * torch.tensor([0.012, 0.012, 0.04, 2.0], device=generator.device)


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


def sample(pictures: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of (B, H, W, 3) in 0…255 at px (B, h, w, 2), grey beyond the border; (B, h, w, 3) float 0…1."""
    height, width = pictures.shape[1:3]
    grey = torch.tensor(BORDER_GREY, device=pictures.device)
    x = (pictures.float() / 255 - grey).movedim(-1, 1)
    grid = (2 * grid + 1) / grid.new_tensor([width, height]) - 1
    return F.grid_sample(x, grid, mode="bilinear", align_corners=False).movedim(1, -1) + grey
