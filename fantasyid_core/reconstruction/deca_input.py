"""Input of DECA's regressor, 224 × 224 px, and the transform from there to the photo."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection.faces import DetectedFace
from ..errors import MeshError
from .deca import SIZE

WHOLE_PHOTO, FACE_CROP = FRAMINGS = ("whole photo", "face crop")
CROP_SCALE = 1.25
CROP_SHIFT = 0.12
"""DECA's crop of a detector's box: a square `CROP_SCALE` times as wide as the box, moved down by `CROP_SHIFT` of it."""


@dataclass(frozen=True, eq=False)
class DecaInput:
    """One photo as the regressor takes it.

    Attributes:
        image: (1, 3, 224, 224) float 0…1.
        to_photo: (2, 3) px of `image` → px of the photo (integers are pixel centres in both).
    """

    image: Tensor
    to_photo: Tensor


def prepare(face: DetectedFace, framing: str = WHOLE_PHOTO) -> DecaInput:
    """The regressor's input for a face.

    Args:
        look_at: "whole photo", squeezed to a square, as FantasyID's release does; or "face crop", DECA's own:
            what it was trained on, and the better choice where the face is small in the photo.

    Raises:
        MeshError: there is no such choice.
    """
    if framing not in FRAMINGS:
        raise MeshError(f"DECA has no framing '{framing}'; choose one of: {', '.join(FRAMINGS)}.")
    if framing == FACE_CROP:
        return crop(face.image, face.box)
    height, width = face.image.shape[:2]
    x, y = width / SIZE, height / SIZE
    return DecaInput(
        squeeze(face.image), face.image.new_tensor([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]], dtype=torch.float32)
    )


def squeeze(photo: Tensor) -> Tensor:
    """(H, W, 3) in 0…1 → (1, 3, 224, 224), whatever the aspect ratio.

    Pillow's antialiased bilinear, which the release used: width first, then height, each rounded to 8 bits. (Newer
    Pillows take the height first where that is faster, which changes some pixels by one step.)
    """
    x = photo.movedim(-1, 0)[None].float() * 255
    for size in ((x.shape[2], SIZE), (SIZE, SIZE)):
        x = (F.interpolate(x, size, mode="bilinear", antialias=True) + 0.5).floor().clamp(0, 255)
    return x / 255


def crop(photo: Tensor, box: Tensor) -> DecaInput:
    """DECA's crop of a face: the square around its box, sampled bilinearly, black where the photo ends.

    As DECA's `TestData` computes it for the box of a detector (the side is cut to whole pixels, the corner pixels'
    centres are the square's corners); its warp does not smooth where it shrinks, and nor does this.

    Args:
        photo: (H, W, 3) float 0…1.
        box: (4,) x0 y0 x1 y1 in px of the photo.
    """
    low, high = box[:2].float(), box[2:].float()
    size = (high - low).mean()
    side = (size * CROP_SCALE).floor().clamp(min=1)
    first = (low + high) / 2 + size * CROP_SHIFT * box.new_tensor([0.0, 1.0]) - side / 2
    step = side / (SIZE - 1)
    to_photo = torch.cat([torch.eye(2, device=box.device) * step, first[:, None]], 1)

    height, width = photo.shape[:2]
    pixel = torch.arange(SIZE, device=photo.device)
    x, y = (first[axis].to(photo.device) + step.to(photo.device) * pixel for axis in (0, 1))
    grid = torch.stack(torch.meshgrid((2 * x + 1) / width - 1, (2 * y + 1) / height - 1, indexing="xy"), -1)
    image = F.grid_sample(photo.movedim(-1, 0)[None].float(), grid[None], align_corners=False)
    return DecaInput(image, to_photo)


def to_photo(points: Tensor, affine: Tensor) -> Tensor:
    """Points (V, 3) of px and depth in the input → of the photo; the depth grows with the root of the area."""
    affine = affine.to(points)
    linear = affine[:, :2]
    plane = points[:, :2] @ linear.T + affine[:, 2]
    return torch.cat([plane, points[:, 2:] * linear.det().abs().sqrt()], 1)
