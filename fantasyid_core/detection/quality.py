"""How well a crop shows its face: sharpness and occlusion, 0…1, to rank views by; and whether the eyes are dark."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_SIZE = 256
_BLUR = 11
_BLURRED, _IN_FOCUS = 0.8, 0.5  # blur effects, measured on real faces
_GREY = (0.2125, 0.7154, 0.0721)
# The face in the FFHQ crop, as shares of its side: centre and half axes of an ellipse from brows to chin.
_OVAL = (0.5, 0.62, 0.2, 0.27)
# Likewise, boxes around each eye with its lids, and skin under the eyes and on the nose: centre and half sides.
_EYES = ((0.377, 0.469, 0.074, 0.039), (0.623, 0.469, 0.074, 0.039))
_SKIN = ((0.361, 0.596, 0.055, 0.043), (0.639, 0.596, 0.055, 0.043), (0.5, 0.586, 0.035, 0.039))


def sharpness(crops: Tensor) -> Tensor:
    """How much of the faces' contrast a blur of their crops would take away: (N, S, S, 3) → (N,), 0…1.

    From the blur effect of Crete et al., "The blur effect: perception and estimation with a new no-reference
    perceptual blur metric", 2007, on the face's part of the crop at 256 px, stretched: 0 is a crop enlarged from
    32 px, 1 a face in focus that fills it. Independent of contrast and light; noise counts as detail.
    """
    grey = (crops.float() @ crops.new_tensor(_GREY, dtype=torch.float32))[:, None]
    grey = F.interpolate(grey, (_SIZE, _SIZE), mode="bilinear", antialias=True)
    x, y, half_width, half_height = (round(_SIZE * part) for part in _OVAL)
    grey = grey[:, :, y - half_height : y + half_height, x - half_width : x + half_width]
    blur = torch.maximum(_blur(grey), _blur(grey.mT))
    return ((_BLURRED - blur) / (_BLURRED - _IN_FOCUS)).clamp(0, 1)


def eye_brightness(crops: Tensor) -> Tensor:
    """Median grey around the brighter eye over that of the skin below: (N, S, S, 3) 0…1 → (N,).

    About 0.4 to 1.5 for eyes that are seen, below 0.33 behind dark glasses (docs/detection.md).
    """
    grey = crops.float() @ crops.new_tensor(_GREY, dtype=torch.float32)
    eyes = torch.stack([_box(grey, eye).median(1).values for eye in _EYES]).amax(0)
    skin = torch.cat([_box(grey, part) for part in _SKIN], 1).median(1).values
    return eyes / skin.clamp(min=1 / 255)


def _box(grey: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The pixels (N, P) of (N, S, S) in a box given as shares of the side: centre and half sides."""
    x, y, half_width, half_height = (round(grey.shape[-1] * part) for part in box)
    return grey[:, y - half_height : y + half_height, x - half_width : x + half_width].flatten(1)


def _blur(grey: Tensor) -> Tensor:
    """Share (N,) of the differences along the rows of (N, 1, h, w) that a box blur along them leaves."""
    half = _BLUR // 2
    box = grey.new_full((1, 1, 1, _BLUR), 1 / _BLUR)
    blurred = F.conv2d(F.pad(grey, (half, half, 0, 0), mode="reflect"), box)
    sobel = grey.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None] / 8
    before, after = (F.conv2d(image, sobel).abs() for image in (grey, blurred))
    lost = (before - after).clamp(min=0).sum((1, 2, 3))
    whole = before.sum((1, 2, 3))
    return 1 - lost / whole.clamp(min=1e-9)


def occlusion(to_crop: Tensor, height: int, width: int, size: int) -> Tensor:
    """Share of the face that the edge of the photo cuts off: (2, 3) photo px → crop px, → () in 0…1."""
    points = _oval().to(to_crop) * size
    inverse = torch.linalg.inv(to_crop[:, :2])
    x, y = ((points - to_crop[:, 2]) @ inverse.T).unbind(-1)
    seen = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    return 1 - seen.to(to_crop.dtype).mean()


@lru_cache(maxsize=1)
def _oval() -> Tensor:
    """(P, 2) points that fill the face's oval, in shares of the crop's side."""
    line = torch.linspace(-1, 1, 33)
    disc = torch.cartesian_prod(line, line)
    disc = disc[disc.square().sum(-1) <= 1]
    return disc * torch.tensor(_OVAL[2:]) + torch.tensor(_OVAL[:2])
