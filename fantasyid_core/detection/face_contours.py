"""Which of the 478 dense landmarks run along brows, eyes, lips and the face's edge, and how open eyes and mouth are.

Numbers are MediaPipe's; right and left are the person's.
"""

import torch
from torch import Tensor

_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10,
)  # fmt: skip
_RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 33)
_LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 263)
_OUTER_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185, 61,
)  # fmt: skip
_INNER_LIPS = (
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78,
)  # fmt: skip
_IRISES = ((469, 470, 471, 472, 469), (474, 475, 476, 477, 474))
_BROWS = ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107), (276, 283, 282, 295, 285), (300, 293, 334, 296, 336))
CONTOURS = (_OVAL, _RIGHT_EYE, _LEFT_EYE, _OUTER_LIPS, _INNER_LIPS, *_IRISES, *_BROWS)
"""Lines to draw; the closed ones end where they begin."""
AROUND_EYES_AND_MOUTH = (
    (130, 25, 110, 24, 23, 22, 26, 112, 243, 190, 56, 28, 27, 29, 30, 247),
    (359, 255, 339, 254, 253, 252, 256, 341, 463, 414, 286, 258, 257, 259, 260, 467),
    _OUTER_LIPS[:-1],
)
"""Rings on the skin, whether eyes and mouth are open or closed."""

# Upper and lower lid in three places, and the corners, of the right eye and of the left.
_LIDS = (((160, 144), (159, 145), (158, 153)), ((385, 380), (386, 374), (387, 373)))
_EYE_CORNERS = ((33, 133), (362, 263))
_LIP_MIDDLES, _MOUTH_CORNERS = (13, 14), (61, 291)


def eye_opening(points: Tensor) -> Tensor:
    """How far the right and the left eye are open, (…, 2): distance of the lids in widths of the eye.

    Args:
        points: (…, 478, 3) px.
    """

    def apart(pairs: tuple[tuple[int, int], ...]) -> Tensor:
        upper, lower = points[..., list(zip(*pairs, strict=True)), :].unbind(-3)
        return (upper - lower).norm(dim=-1)

    lids = torch.stack([apart(own).mean(-1) for own in _LIDS], -1)
    return lids / apart(_EYE_CORNERS).clamp(min=1e-6)


def mouth_opening(points: Tensor) -> Tensor:
    """How far the mouth is open, (…): distance of the lips in widths of the mouth; points as for `eye_opening`."""
    upper, lower, right, left = (points[..., index, :] for index in (*_LIP_MIDDLES, *_MOUTH_CORNERS))
    return (upper - lower).norm(dim=-1) / (left - right).norm(dim=-1).clamp(min=1e-6)
