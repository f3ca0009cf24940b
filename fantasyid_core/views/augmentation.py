"""Altered copies of views: other light, colour and sharpness, and a slightly other framing; the same for the same seed.

All numbers are drawn on the CPU, so that a seed means the same on every device.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..detection.alignment import BORDER_GREY
from ..errors import ImageError
from ..optional_import import require
from .collection import FaceViews

ENHANCE = ("adjust_contrast_with_mean_subtraction", "adjust_saturation", "adjust_gamma", "adjust_hue")


@dataclass(frozen=True, eq=False)
class Changes:
    """What is altered in N copies, (N,) float32 on the CPU each.

    Attributes:
        brightness, contrast, saturation, gamma, scale: logarithms of factors.
        hue: radians; blur: px of the crop; angle: degrees.
        right, down: shares of the crop's side.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    gamma: Tensor
    hue: Tensor
    blur: Tensor
    angle: Tensor
    scale: Tensor
    right: Tensor
    down: Tensor


_LARGEST = {  # changes at strength 1
    "brightness": 0.18,
    "contrast": 0.2,
    "saturation": 0.25,
    "gamma": 0.15,
    "hue": 0.08,
    "blur": 2.5,
    "angle": 4.0,
    "scale": 0.05,
    "right": 0.02,
    "down": 0.02,
}


def augment(views: FaceViews, count: int, seed: int = 0, strength: float = 1.0) -> FaceViews:
    """`views` followed by `count` altered copies of them, taken in turn.

    A copy keeps its view's pose, turned in the picture by as much as the copy is; its score is the view's. Where a
    rendered view is empty, its copies are too.

    Args:
        seed: any integer; the first k copies do not depend on `count`.
        strength: factor on all changes, 0 none … 1 as one photographer differs from another … 2.

    Raises:
        ImageError: a negative count or strength.
    """
    if count < 0 or not strength >= 0:
        raise ImageError(
            f"{count} altered views of strength {strength} were asked for; expected 0 or more of both. Set both so."
        )
    if not count:
        return views
    source_index = torch.arange(count) % len(views.crops)
    changes = _draw(count, seed, strength)
    sources = source_index.to(views.crops.device)
    crops = _recolour(views.crops[sources].movedim(-1, 1), changes)
    covered = None if views.coverage is None else views.coverage[sources][:, None]
    crops, covered = _reframe(crops, covered, changes)
    coverage = None if covered is None or views.coverage is None else torch.cat([views.coverage, covered[:, 0]])
    poses = views.poses
    if poses is not None:
        roll = changes.angle.to(poses)[:, None] * poses.new_tensor([0, 0, 1])
        poses = torch.cat([poses, poses[sources] + roll])
    return replace(
        views,
        crops=torch.cat([views.crops, crops.movedim(1, -1)]),
        scores=torch.cat([views.scores, views.scores[sources]]),
        poses=poses,
        origins=(*(views.origins or ("",) * len(views.crops)), *("augmented" for _ in range(count))),
        coverage=coverage,
        report="\n".join(filter(None, (views.report, f"{count} altered copies (seed {seed})."))),
    )


def _draw(count: int, seed: int, strength: float) -> Changes:
    """Each change within ± its largest × strength."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, len(_LARGEST), generator=generator) * 2 - 1
    return Changes(**{name: uniform[:, i] * most * strength for i, (name, most) in enumerate(_LARGEST.items())})


def _recolour(crops: Tensor, changes: Changes) -> Tensor:
    """(N, 3, S, S) → the same in other light and focus."""
    enhance = require("kornia.enhance", "Altering views", "kornia", ENHANCE)
    filters = require("kornia.filters", "Altering views", "kornia", ["gaussian_blur2d"])
    crops = crops * changes.brightness.to(crops).exp()[:, None, None, None]
    crops = enhance.adjust_contrast_with_mean_subtraction(crops.clamp(0, 1), changes.contrast.to(crops).exp())
    crops = enhance.adjust_saturation(crops.clamp(0, 1), changes.saturation.to(crops).exp())
    crops = enhance.adjust_gamma(crops.clamp(0, 1), changes.gamma.to(crops).exp())
    crops = enhance.adjust_hue(crops.clamp(0, 1), changes.hue.to(crops))
    sigma = changes.blur.to(crops).clamp(min=0.05)[:, None].expand(-1, 2)  # half of them stay sharp
    return filters.gaussian_blur2d(crops, (15, 15), sigma).clamp(0, 1)


def _reframe(crops: Tensor, coverage: Tensor | None, changes: Changes) -> tuple[Tensor, Tensor | None]:
    """(N, 3, S, S) and (N, 1, S, S) → turned, scaled and shifted about their middle; grey where nothing is known."""
    transform = require("kornia.geometry.transform", "Altering views", "kornia", ["warp_affine"])
    size = crops.shape[-1]
    angle, scale = changes.angle.deg2rad(), changes.scale.exp()
    p, q = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([p, -q, q, p], 1).unflatten(1, (2, 2))
    middle = torch.full((2,), (size - 1) / 2)
    shift = torch.stack([changes.right, changes.down], 1) * size
    matrix = torch.cat([linear, (middle + shift - linear @ middle)[..., None]], 2).to(crops)
    grey = crops.new_tensor(BORDER_GREY)
    crops = transform.warp_affine(
        crops, matrix, (size, size), padding_mode="fill", fill_value=grey, align_corners=True
    ).clamp(0, 1)
    if coverage is None:
        return crops, None
    covered: Tensor = transform.warp_affine(coverage, matrix, (size, size), mode="nearest", align_corners=True)
    return torch.where(covered > 0, crops, grey[:, None, None]), covered
