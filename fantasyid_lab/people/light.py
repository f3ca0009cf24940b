"""Light on the synthetic people: a sky from all around and one lamp, with the head's own soft shadows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import Head, rotation

# How far the lamp reaches around a surface, by colour: red light travels farther through skin.
_WRAP = (0.38, 0.24, 0.20)
_GLOSS_EXPONENT = 20


def harmonics(directions: Tensor) -> Tensor:
    """(…, 3) unit vectors → (…, 9): the real spherical harmonics up to the second order, without their constants."""
    x, y, z = directions.unbind(-1)
    return torch.stack([x * 0 + 1, x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], -1)


def shade(head: Head, normals: Tensor, pose: Tensor, direction: Tensor, lamp: Tensor, sky: Tensor) -> Tensor:
    """Light that n heads' vertices receive.

    Args:
        normals: (n, V, 3) unit; pose: (n, 3) degrees of the head, whose shadows turn with it.
        direction: (n, 3) unit, towards the lamp; lamp, sky: (n, 3) linear colours.

    Returns:
        (n, V, 4): diffuse light by colour, and highlight for a gloss of 1, as a viewer straight ahead sees it.
    """
    with_head = head.skin_weights[:, 4] + 0.5 * head.skin_weights[:, 3]
    own = (rotation(pose).transpose(1, 2) @ direction[..., None])[..., 0]
    directions = harmonics(torch.stack([own, direction]))  # (2, n, 9)
    visibility = directions @ head.openness[:, 1:].T
    visibility = torch.lerp(visibility[1], visibility[0], with_head)
    visibility = ((visibility - 0.1) / 0.75).clamp(0, 1)[..., None]

    facing = (normals @ direction[..., None]).clamp(-1, 1)
    wrap = facing.new_tensor(_WRAP)
    diffuse = ((facing + wrap) / (1 + wrap)).clamp(min=0) * (0.12 + 0.88 * visibility) * lamp[:, None]
    up, front = normals[..., 1:2], normals[..., 2:3].clamp(min=0)
    open_ = head.openness[:, :1].clamp(0, 1)
    ambient = open_ * (0.66 + 0.34 * up) * (0.6 + 0.4 * front)
    half = F.normalize(direction + direction.new_tensor([0, 0, 1]), dim=-1)
    gloss = (normals @ half[..., None]).clamp(min=0) ** _GLOSS_EXPONENT * visibility
    return torch.cat([diffuse + ambient * sky[:, None], gloss], -1)
