"""Who acts where and when in a video: as the first frame that the model is shown, and as a picture for the artist."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dit.region import Box
from ..images import resize

_SIDE, _GREY = 512, 0.5  # px, as a reference crop's; the value that is 0 where pixels are −1…1


def arrange(crops: Sequence[Tensor], boxes: Sequence[Box]) -> Tensor:
    """Reference crops (H, W, 3) 0…1, each squeezed into its box of the picture, as the release squeezes one into all.

    Returns:
        (512, 512, 3) float32, grey where nobody is; where boxes overlap the first person is on top.
    """
    canvas = torch.full((_SIDE, _SIDE, 3), _GREY)
    for crop, (left, top, width, height) in reversed(list(zip(crops, boxes, strict=True))):
        x0, x1, y0, y1 = (min(_SIDE, round(_SIDE * at)) for at in (left, left + width, top, top + height))
        if x1 > x0 and y1 > y0:
            canvas[y0:y1, x0:x1] = resize(crop.float().cpu(), y1 - y0, x1 - x0)
    return canvas
