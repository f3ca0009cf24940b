"""Aligned crops of faces whose landmarks are known, many at a time on the pictures' device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.detection.alignment import BORDER_GREY

from .batching import constant
from .camera import face_crop


def align(pictures: Tensor, landmarks: Tensor, size: int, shifts: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) uint8 and landmarks (B, ≥ 5, 2) px → FFHQ crops (B, size, size, 3) float 0…1.

    Args:
        shifts: (B, 4) as `camera.face_crop` takes them.
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


def sample(pictures: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of (B, H, W, 3) in 0…255 at px (B, h, w, 2), grey beyond the border; (B, h, w, 3) float 0…1."""
    height, width = pictures.shape[1:3]
    grey = constant(BORDER_GREY, pictures.device)
    x = (pictures.float() / 255 - grey).movedim(-1, 1)
    grid = (2 * grid + 1) / constant((width, height), grid.device) - 1
    return F.grid_sample(x, grid, mode="bilinear", align_corners=False).movedim(1, -1) + grey
