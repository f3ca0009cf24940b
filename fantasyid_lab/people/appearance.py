"""Paint and dress: skin, brows, eyes, hair, beard and shirt as functions of the place on the base mesh.

There are no textures, so paint sticks to the head through identity and expression. What varies slowly is painted once
per clip on the vertices (`paint_vertices`), what has sharp edges on every pixel (`paint_pixels`).
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from .head import HAIR, LASHES, LEFT_EYE, RIGHT_EYE, SKIN, TEETH, TONGUE, Head

# Height over depth (z out of the face, y up from the eyes, metres on the base mesh).
_HAIRLINE = (
    (-0.1745, -0.0995, -0.0845, -0.0645, -0.0365, -0.0265, -0.0125, 0.0055, 0.0255, 0.0755),
    (-0.0804, -0.0734, -0.0164, -0.0064, -0.0064, 0.0296, 0.0576, 0.0676, 0.0716, 0.0716),
)
_COLLAR = ((-0.1745, -0.1245, -0.0645, -0.0045, 0.0355), (-0.1284, -0.1384, -0.1634, -0.1834, -0.1934))
_BEARD = ((-0.0445, -0.0345, -0.0045, 0.0205, 0.0455), (-0.0034, -0.0284, -0.0604, -0.0704, -0.0734))
_IRIS_X, _IRIS_RADIUS, _PUPIL_RADIUS = 0.0308, 0.0064, 0.0029
_TONGUE, _TEETH, _MOUTH = (0.46, 0.12, 0.11), (0.80, 0.74, 0.64), (0.12, 0.02, 0.02)
_SCLERA = (0.80, 0.77, 0.74)
PAINT_CHANNELS = 12
"""Columns of `paint_vertices`: colour 3, gloss, hair, shirt, beard, freckles, place on the base mesh 3, side."""


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def displace(head: Head, vertices: Tensor, normals: Tensor, hair: SimpleNamespace, collar: Tensor) -> Tensor:
    """Neutral vertices (B, V, 3) with hair and shirt upon the skin."""
    x, y, z = head.canonical.T
    place = _hairline_distance(head, hair)
    phase = hair.phase[:, None]
    height = torch.lerp(hair.side[:, None], hair.top[:, None], smoothstep(0.0, 0.085, y))
    height = height + hair.front[:, None] * smoothstep(0.045, 0.085, y) * smoothstep(-0.05, 0.01, z)
    waves = torch.sin(x * 210 + phase) * torch.sin(y * 190 + 2 * phase) * torch.sin(z * 200 + 3 * phase)
    height = height * (1 + 0.3 * hair.curl[:, None] * waves) * smoothstep(0.0, 0.03, place)
    shirt = 0.004 * smoothstep(0.003, -0.003, _collar_distance(head, collar))
    part = vertex_parts(head)
    offset = torch.where(part == SKIN, height + shirt, 0)

    # The curtain: thicker than the head, as long as the hair.
    curtain = part == HAIR
    offset = torch.where(curtain, 0.5 * hair.side[:, None] + hair.spread[:, None] * smoothstep(0.06, -0.05, y), offset)
    ragged = 0.004 * torch.sin(x * 310 + phase) + 0.004 * torch.sin(z * 270 + 2 * phase)
    lift = torch.where(curtain, (hair.cut[:, None] + ragged - y).clamp(min=0), 0)
    # Chest and shoulders end where the bust was cut: draw the edges down, out of the picture.
    edge = torch.maximum(smoothstep(-0.255, -0.275, y), smoothstep(0.215, 0.24, x.abs())) * (part == SKIN)
    lift = lift - 0.15 * edge
    vertices = vertices + normals * offset[..., None]
    return torch.stack([vertices[..., 0], vertices[..., 1] + lift, vertices[..., 2]], -1)


def triangle_mask(head: Head, hair: SimpleNamespace) -> Tensor:
    """(B, F) bool: all, but the curtain only of long hair."""
    return (head.parts != HAIR) | (hair.long[:, None] > 0)


def vertex_parts(head: Head) -> Tensor:
    """(V,) what each vertex belongs to, as `Head.parts`."""
    return torch.zeros_like(head.canonical[:, 0], dtype=torch.long).scatter(
        0, head.faces.flatten(), head.parts.repeat_interleave(3)
    )


def paint_vertices(head: Head, paint: SimpleNamespace, hair: SimpleNamespace, collar: Tensor) -> Tensor:
    """(B, V, PAINT_CHANNELS) of what is the same for all frames of a clip."""
    x, y, z = head.canonical.T
    side, part = x.abs(), vertex_parts(head)
    masks = dict(zip(head.mask_names, head.masks.T, strict=True))

    inside = masks["inside-mouth"] * (masks["lips"] < 0.5)
    cheeks = (_spot(head, 0.040, -0.036, 0.016, 0.014) + 0.7 * _spot(head, 0, -0.038, 0.012, 0.012)) * (z > -0.0445)
    colour = _vertex_colours(head, paint, masks["lips"], inside, cheeks)
    beard = _beard(head, paint) * (1 - masks["lips"]) * (part == SKIN)
    gloss = torch.where(part == SKIN, 0.09 + 0.13 * masks["lips"], 0.0) * (1 - inside)
    gloss = torch.where(part == TEETH, 0.3, gloss)
    place = torch.where(part == HAIR, 1.0, torch.where(part == SKIN, _hairline_distance(head, hair), -1.0))
    shirt = torch.where(part == SKIN, _collar_distance(head, collar), 1.0)
    count = len(colour)
    channels = [
        gloss.expand(count, -1),
        place,
        shirt,
        beard,
        (cheeks * paint.freckles[:, None]).expand(count, -1),
        *(axis.expand(count, -1) for axis in (x, y, z)),
        side.expand(count, -1),
    ]
    return torch.cat([colour, torch.stack(channels, -1)], -1)


def _spot(head: Head, x0: float, y0: float, width: float, height: float) -> Tensor:
    """(V,) 0…1, a blurred spot on both sides of the face."""
    x, y, _ = head.canonical.T
    return torch.exp(-((x.abs() - x0) / width).square() - ((y - y0) / height).square())


def _vertex_colours(head: Head, paint: SimpleNamespace, lips: Tensor, inside: Tensor, cheeks: Tensor) -> Tensor:
    """(B, V, 3) linear colours without hair and shirt; masks (V,) of lips, inside of the mouth, and cheeks."""
    x, y, z = head.canonical.T
    part = vertex_parts(head)

    def column(value: Tensor) -> Tensor:
        return value[:, None, None]

    skin = paint.skin[:, None]
    colour = skin.expand(-1, len(x), -1)
    colour = _mix(colour, skin * skin.new_tensor([1.04, 0.74, 0.68]), cheeks[:, None] * column(paint.blush))
    socket = _spot(head, 0.031, 0, 0.020, 0.012) * (z > -0.035)
    colour = _mix(colour, skin * skin.new_tensor([0.68, 0.58, 0.58]), socket[:, None] * column(paint.socket))
    nostril = _spot(head, 0.009, -0.0489, 0.0035, 0.0028) * (z > 0.0155)
    colour = _mix(colour, skin * 0.25, 0.7 * nostril[:, None])
    colour = _mix(colour, paint.lips[:, None], 0.9 * lips[:, None])
    colour = _mix(colour, colour.new_tensor(_MOUTH), inside[:, None])
    for number, value in ((TONGUE, _TONGUE), (TEETH, _TEETH), (LEFT_EYE, _SCLERA), (RIGHT_EYE, _SCLERA)):
        colour = torch.where((part == number)[:, None], colour.new_tensor(value), colour)
    lashes = torch.lerp(
        0.45 * skin, 0.25 * paint.brow[:, None], smoothstep(-0.004, 0.001, y)[:, None]
    )  # the upper are darker
    return torch.where((part == LASHES)[:, None], lashes, colour)


def _beard(head: Head, paint: SimpleNamespace) -> Tensor:
    """(B, V) 0…1, beard and moustache by their places."""
    x, y, z = head.canonical.T
    side = x.abs()
    below = (
        smoothstep(0.006, -0.006, y - _piecewise_linear(_BEARD, z))
        * smoothstep(-0.1282, -0.1162, y - 0.15 * z)
        * smoothstep(-0.0545, -0.0465, z)
    )
    middle = -0.0529 - 0.10 * (side - 0.012).clamp(min=0) - 0.9 * (side - 0.022).clamp(min=0)
    upper = smoothstep(1.15, 0.75, (y - middle).abs() / 0.0062) * smoothstep(0.034, 0.028, side) * (z > -0.0145)
    return torch.maximum(below * paint.beard[:, None], upper * paint.moustache[:, None])


def paint_pixels(
    painted: Tensor, part: Tensor, paint: SimpleNamespace, hair: SimpleNamespace, shirt: Tensor, glint: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What N pixels show.

    Args:
        painted: (PAINT_CHANNELS, N) interpolated from the vertices; part: (N,) of the triangle.
        paint, hair, shirt: of each pixel's clip, (N, …).
        glint: (N, 2) place of the lamp's reflection on the eye, metres from the eyeball's middle on the base mesh.

    Returns:
        colour (N, 3); gloss (N,); kind (N, 2) 0…1, how far it is hair, and shirt.
    """
    colour, (gloss, place, below, beard, freckles, x, y, z, side) = painted[:3].T, painted[3:]
    skin = part == SKIN
    speck = torch.sin(x * 1500 + 2 * torch.sin(y * 900 + paint.phase))
    speck = speck * torch.sin(y * 1600 + 2 * torch.sin(x * 1100 + paint.phase))
    colour = colour * (1 - 0.5 * freckles * smoothstep(0.35, 0.75, speck))[:, None]
    dots = 0.88 + 0.12 * torch.sin(x * 2300 + 2 * torch.sin(y * 1900))
    brows = _brows(side, y, paint) * (z > -0.0245)
    dark = torch.maximum(beard * torch.lerp(torch.ones_like(dots), dots, paint.stubble), brows) * skin
    colour = _mix(colour, paint.brow, dark[:, None])

    around = torch.atan2(x - hair.parting, z + 0.0645)
    strand = 0.5 * torch.sin(around * 37 + hair.phase) + 0.35 * torch.sin(around * 71 + y * 140 + 2 * hair.phase)
    strand = strand + 0.4 * torch.sin(around * 23 + y * 60 + 3 * hair.phase)
    curtain = part == HAIR
    hair_coverage = (
        smoothstep(-0.001, 0.003, place + 0.0025 * strand) * torch.where(curtain, 1.0, hair.cover) * (skin | curtain)
    )
    colour = _mix(colour, hair.colour * (1 + 0.2 * strand)[:, None], hair_coverage[:, None])
    shirt_coverage = smoothstep(0.0015, -0.0015, below) * skin
    colour = _mix(colour, shirt, shirt_coverage[:, None])
    gloss = torch.lerp(
        torch.lerp(gloss, torch.full_like(gloss, 0.10), hair_coverage), torch.zeros_like(gloss), shirt_coverage
    )

    eye = (part == LEFT_EYE) | (part == RIGHT_EYE)
    colour, gloss = _eyes(colour, gloss, eye, x, y, side, paint.iris, glint)
    return colour, gloss, torch.stack([hair_coverage, shirt_coverage], 1)


def _brows(side: Tensor, y: Tensor, paint: SimpleNamespace) -> Tensor:
    t = (side - 0.012) / 0.036
    along = t.clamp(0, 1)
    middle = 0.0196 + paint.brow_height + 0.0035 * along + paint.brow_arch * torch.sin(torch.pi * along)
    middle = middle - paint.brow_tail * (t - 0.65).clamp(min=0)
    thickness = paint.brow_thickness * (0.7 + 3 * along.clamp(max=0.1)) * (1 - 0.8 * (along - 0.4).clamp(min=0) / 0.6)
    hairs = 0.95 + 0.05 * torch.sin(side * 2600 + y * 1300 + 2 * torch.sin(side * 1100))
    return (
        paint.brow_density
        * hairs
        * smoothstep(1.4, 0.6, (y - middle).abs() / thickness)
        * smoothstep(-0.06, 0.06, t)
        * smoothstep(1.06, 0.9, t)
    )


def _eyes(
    colour: Tensor, gloss: Tensor, eye: Tensor, x: Tensor, y: Tensor, side: Tensor, iris: Tensor, glint: Tensor
) -> tuple[Tensor, Tensor]:
    across = side - _IRIS_X
    radius = torch.hypot(across, y)
    ball = colour * (1 - 0.45 * smoothstep(0.001, 0.010, y) - 0.25 * smoothstep(0.006, 0.013, across.abs()))[:, None]
    rings = 1.35 - 0.85 * smoothstep(0.0035, _IRIS_RADIUS, radius) - 0.25 * smoothstep(0.0, 0.006, y)
    ball = _mix(ball, iris * rings[:, None], smoothstep(_IRIS_RADIUS + 0.0005, _IRIS_RADIUS - 0.0003, radius)[:, None])
    ball = ball * (1 - 0.97 * smoothstep(_PUPIL_RADIUS + 0.0004, _PUPIL_RADIUS - 0.0002, radius))[:, None]
    sideways = x.sign() * across - glint[:, 0]
    light = 0.85 * smoothstep(0.0019, 0.0009, torch.hypot(sideways, y - glint[:, 1]))
    return torch.where(eye[:, None], ball + light[:, None], colour), torch.where(eye, 0.0, gloss)


def _hairline_distance(head: Head, hair: SimpleNamespace) -> Tensor:
    """(B, V) metres behind the hairline; negative before it."""
    x, y, z = head.canonical.T
    ears = head.masks[:, head.mask_names.index("ears")]
    front = smoothstep(-0.035, -0.015, z)
    fallen = hair.fringe[:, None] * smoothstep(0.055, 0.035, (x - hair.parting[:, None]).abs())
    return (
        y - _piecewise_linear(_HAIRLINE, z) - (hair.line[:, None] - fallen) * front - 0.1 * smoothstep(0.15, 0.4, ears)
    )


def _collar_distance(head: Head, collar: Tensor) -> Tensor:
    """(B, V) metres above the shirt's edge; negative where it covers the skin."""
    x, y, z = head.canonical.T
    return y - _piecewise_linear(_COLLAR, z) - collar[:, None] - 0.2 * smoothstep(0.075, 0.13, x.abs()) * (y < -0.1)


def _piecewise_linear(knots: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    """Piecewise linear function through knots, constant beyond them."""
    xs, ys = knots
    total = torch.full_like(x, ys[0])
    for i in range(len(xs) - 1):
        width = xs[i + 1] - xs[i]
        total = total + (x - xs[i]).clamp(0, width) * ((ys[i + 1] - ys[i]) / width)
    return total


def _mix(colour: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    return colour + (other - colour) * amount.clamp(0, 1)
