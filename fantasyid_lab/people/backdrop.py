"""What is behind the people."""

from types import SimpleNamespace

import torch
from torch import Tensor

from .appearance import smoothstep


def backdrop(background: SimpleNamespace, place: Tensor) -> Tensor:
    """Linear colours (n, H, W, 3) of backgrounds (fields (n, …), see `scene.Background`) at places (n, H, W, 2), sides
    of the picture from its centre.
    """

    def per_picture(value: Tensor) -> Tensor:
        return value[:, None, None]

    along = (place * per_picture(background.direction)).sum(-1)
    middle, soft = per_picture(background.middle), per_picture(background.softness)
    blend = smoothstep(middle - soft / 2, middle + soft / 2, along)[..., None]
    colour = torch.lerp(per_picture(background.near), per_picture(background.far), blend)
    for i in range(background.shapes.shape[1]):
        x, y, radius = background.shapes[:, i].unbind(1)
        distance = torch.hypot(place[..., 0] - per_picture(x), place[..., 1] - per_picture(y)) / per_picture(radius)
        amount = per_picture(background.strength) * smoothstep(1.15, 0.75, distance)
        colour = torch.lerp(colour, per_picture(background.tints[:, i]), amount[..., None])
    return colour * (1 - per_picture(background.vignette)[..., None] * place.square().sum(-1, keepdim=True))
