"""Face landmarks → the FFHQ-aligned crop that identity encoders were trained on."""

import math

import torch
from torch import Tensor

from ..images import resize
from ..optional_import import require

CROP_SIZE = 512
RELEASED_LONG_SIDE = 1024

# facexlib's FFHQ landmarks in a 512 px crop: the person's right eye, left eye, nose, right and left mouth corner.
FFHQ_TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
BORDER_GREY = (132 / 255, 133 / 255, 135 / 255)


def similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity (2, 3) that takes points (N, 2) to points (N, 2), without reflection (Umeyama 1991).

    In the plane it is the complex linear regression, so no decomposition is needed.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    x, u = source - source_mean, target - target_mean
    spread = x.square().sum().clamp(min=1e-12)
    p = (x * u).sum() / spread
    q = (x[:, 0] * u[:, 1] - x[:, 1] * u[:, 0]).sum() / spread
    rotation = torch.stack([torch.stack([p, -q]), torch.stack([q, p])])
    return torch.cat([rotation, (target_mean - rotation @ source_mean)[:, None]], 1)


def align(photo: Tensor, landmarks: Tensor, size: int = CROP_SIZE) -> tuple[Tensor, Tensor]:
    """FFHQ crop of a face by similarity warp, bilinear, grey where the photo ends (release: facexlib's crop).

    The similarity is the least-squares one over all five landmarks. facexlib has OpenCV's LMEDS estimate, which is the
    same unless it drops a landmark as an outlier (measured on nine real faces: equal on eight, 6 px apart on one), and
    then makes crops of one person jump between frames.

    Args:
        photo: (H, W, 3) float 0…1.
        landmarks: (5, 2) px, order as in `FFHQ_TEMPLATE`, on the photo's device.
        size: side of the crop.

    Returns:
        crop (size, size, 3) and to_crop (2, 3), photo px → crop px.
    """
    template = landmarks.new_tensor(FFHQ_TEMPLATE) * (size / CROP_SIZE)
    to_crop = similarity(landmarks, template)
    return warp(photo, to_crop, size), to_crop


def warp(photo: Tensor, to_crop: Tensor, size: int) -> Tensor:
    """The square of size × size that a similarity (2, 3), photo px → px of the square, cuts out of a photo; bilinear,
    grey where the photo ends.

    Like the release, the warp samples a photo whose long side was first reduced to 1024, but never below the crop's own
    resolution, so that a small face in a large photo keeps its detail.
    """
    transform = require("kornia.geometry.transform", "Cropping a face", "kornia", ["warp_affine"])
    x0, y0, x1, y1, scale = _seen(to_crop, size, *photo.shape[:2])

    # Only the part of the photo that the crop shows is touched, whatever the size of the photo.
    part = photo[y0:y1, x0:x1]
    height, width = part.shape[:2]
    reduction = min(1.0, max(RELEASED_LONG_SIDE / max(photo.shape[:2]), scale))
    part = resize(part, max(1, round(height * reduction)), max(1, round(width * reduction)))
    ratio_x, ratio_y = width / part.shape[1], height / part.shape[0]
    to_photo = to_crop.new_tensor(
        [[ratio_x, 0, x0 + (ratio_x - 1) / 2], [0, ratio_y, y0 + (ratio_y - 1) / 2], [0, 0, 1]]
    )
    crop = transform.warp_affine(
        part.movedim(-1, 0)[None].contiguous(),
        (to_crop @ to_photo)[None],
        (size, size),
        mode="bilinear",
        padding_mode="fill",
        align_corners=True,  # integer coordinates are pixel centres, as in OpenCV
        fill_value=part.new_tensor(BORDER_GREY),
    )
    return crop[0].movedim(0, -1).clamp(0, 1)


def _seen(to_crop: Tensor, size: int, height: int, width: int) -> tuple[int, int, int, int, float]:
    """Bounds x0 y0 x1 y1 of the part of a photo that a crop shows, with a margin; and the scale of the transform."""
    (p, _, tx), (q, _, ty) = to_crop.tolist()
    square = max(p * p + q * q, 1e-12)
    corners = [(x - tx, y - ty) for x in (0, size) for y in (0, size)]
    xs = [(p * x + q * y) / square for x, y in corners]
    ys = [(p * y - q * x) / square for x, y in corners]
    margin = 2 + 1 / math.sqrt(square)
    x0 = min(max(math.floor(min(xs) - margin), 0), width - 1)
    y0 = min(max(math.floor(min(ys) - margin), 0), height - 1)
    x1 = max(min(math.ceil(max(xs) + margin), width), x0 + 1)
    y1 = max(min(math.ceil(max(ys) + margin), height), y0 + 1)
    return x0, y0, x1, y1, math.sqrt(square)
