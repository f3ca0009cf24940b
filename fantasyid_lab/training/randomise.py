"""Domain randomisation of reference photos: what real photos do to a face and the renderer does not.

Glasses, hats, hoods, fallen hair, hands and microphones before the face; light, exposure, white balance; lens, blur,
grain and JPEG. All of it on the photos' device, in batches, from one generator. Colours are bounded, so that skin and
hair can still be told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..people.batching import constant
from .data import rand, randint, randn

EYES, MOUTH = slice(0, 2), slice(3, 5)  # landmarks: right and left iris, mouth corners
TAPS = 9  # px, side of a blur's kernel
BLOCK = 8  # px of JPEG's blocks
HAND_FINGERS = 4
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # quantisation of ITU-T T.81's annex K, quality 50; colour is quantised with a constant 99 but for its corner
_COLOUR_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
_DARK_SKIN, _LIGHT_SKIN = (0.28, 0.18, 0.13), (0.96, 0.80, 0.70)
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Randomisation:
    """How much of what; 0 everywhere leaves photos as they are.

    Attributes:
        clean: share of photos that are left alone.
        lens: barrel, cushion and tilted perspective: 1 moves the corners by up to a tenth.
        glasses, hats, hair, occluders: shares of photos that have them; a third of the glasses is dark, a third of the
            hats are hoods or helmets.
        light: of a lamp from one side, 1: a factor of up to 1.8 across the face; shadows: share with an edge of shadow.
        exposure: 1: up to half a stop and a gamma of 0.75 to 1.33; white_balance: 1: each channel by up to 12 %.
        blur: 1: up to 1.6 px out of focus, 3 along a movement; grain: 1: up to 0.06; jpeg: share of photos that were
            stored at a quality of 20 to 90.
    """

    clean: float = 0.0
    lens: float = 0.0
    glasses: float = 0.0
    hats: float = 0.0
    hair: float = 0.0
    occluders: float = 0.0
    light: float = 0.0
    shadows: float = 0.0
    exposure: float = 0.0
    white_balance: float = 0.0
    blur: float = 0.0
    grain: float = 0.0
    jpeg: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether photos stay as they are."""
        return not any(value for name, value in vars(self).items() if name != "clean")


def randomise(
    photos: Tensor, landmarks: Tensor, generator: torch.Generator, amount: Randomisation, hair: Tensor | None = None
) -> Tensor:
    """Photos (B, H, W, 3) 0…1, H and W multiples of 16 → the same faces in other conditions, 0…1.

    In full precision whatever surrounds it: places in a photo and JPEG's cosines have more digits than bfloat16.

    Args:
        landmarks: (B, ≥ 5, 2) px of the photos, as `people` has them.
        generator: on the photos' device; all randomness is its own.
        hair: (B, 3) 0…1, the colour of the hair that falls into the face; drawn where it is not given.
    """
    if amount.is_off or not len(photos):
        return photos
    with torch.autocast(photos.device.type, enabled=False):
        return _randomise(photos, landmarks, generator, amount, hair)


def _randomise(
    photos: Tensor, landmarks: Tensor, generator: torch.Generator, amount: Randomisation, hair: Tensor | None
) -> Tensor:
    clean = rand(generator, len(photos), 1, 1, 1) < amount.clean
    x = _wear(photos.clamp(0, 1), landmarks, generator, amount, hair)
    x = _bend(x, generator, amount.lens) if amount.lens else x
    x = _light(x, landmarks, generator, amount)
    x = x.movedim(-1, 1)
    x = _blur(x, generator, amount.blur) if amount.blur else x
    x = _grain(x, generator, amount.grain) if amount.grain else x
    x = x.clamp(0, 1)
    x = _on_share(x, amount.jpeg, generator, lambda part, _: jpeg(part, 20 + 70 * rand(generator, len(part))))
    return torch.where(clean, photos, x.movedim(1, -1)).clamp(0, 1)


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) 0…1, H and W multiples of 16, as JPEG of a quality (B,) of 1 to 100 stores them, colour at
    half the size; nothing is rounded beside the coefficients.
    """
    turn, back = (constant(x, pictures.device) for x in (_YCBCR, _RGB))
    tables = _quantisation(str(pictures.device))
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]
    steps = (tables[None] * scale[..., None]).round().clamp(1, 255) / 255  # (B, 2, 8, 8)
    y, cb, cr = torch.einsum("ij,bjhw->bihw", turn, pictures).split(1, 1)
    y = _quantise(y - 0.5, steps[:, :1]) + 0.5
    colour = _quantise(F.avg_pool2d(torch.cat([cb, cr], 1), 2), steps[:, 1:])
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    return torch.einsum("ij,bjhw->bihw", back, torch.cat([y, colour], 1)).clamp(0, 1)


def _quantise(x: Tensor, steps: Tensor) -> Tensor:
    """Planes (B, C, H, W) with their blocks' cosines rounded to multiples of steps (B, 1, 8, 8)."""
    basis = _cosines(str(x.device))
    blocks = x.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)  # (B, C, h, w, 8, 8)
    steps = steps[:, :, None, None]
    rounded = ((basis @ blocks @ basis.T) / steps).round() * steps
    return (basis.T @ rounded @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)


@lru_cache(maxsize=4)
def _cosines(device: str) -> Tensor:
    """(8, 8) the orthonormal cosine transform."""
    k, n = torch.arange(BLOCK)[:, None], torch.arange(BLOCK)
    basis = torch.cos(torch.pi * (2 * n + 1) * k / (2 * BLOCK)) * (2 / BLOCK) ** 0.5
    basis[0] /= 2**0.5
    return basis.to(device)


@lru_cache(maxsize=4)
def _quantisation(device: str) -> Tensor:
    """(2, 8, 8) steps of brightness and of colour at a quality of 50."""
    colour = torch.full((BLOCK, BLOCK), 99.0)
    colour[:4, :4] = torch.tensor(_COLOUR_CORNER)
    return torch.stack([torch.tensor(_LUMINANCE, dtype=torch.float32), colour]).to(device)


def _on_share(
    x: Tensor, share: float, generator: torch.Generator, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """That share of the batch changed by `change` (their part, their rows); how many does not wait for the device."""
    count = round(share * len(x))
    if not count:
        return x
    rows = rand(generator, len(x)).argsort()[:count]
    return x.index_copy(0, rows, change(x[rows], rows))


class _Face:
    """Where pixels of n photos lie by their faces: `across`, to the person's left, and `down`, both (n, H, W), in
    distances between the eyes of the face seen from the front, from the middle of the eyes.
    """

    def __init__(self, landmarks: Tensor, size: tuple[int, int]):
        eyes, mouth = landmarks[:, EYES], landmarks[:, MOUTH].mean(1)
        self.middle, between = eyes.mean(1), eyes[:, 1] - eyes[:, 0]
        fall = (mouth - self.middle).norm(dim=1)
        self.unit = torch.maximum(between.norm(dim=1), 0.9 * fall).clamp(min=1e-3)  # a turned face's eyes are close
        axis = F.normalize(between, dim=1, eps=1e-6)
        y, x = (torch.arange(n, device=landmarks.device, dtype=torch.float32) for n in size)
        place = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)
        offset = (place - self.middle[:, None, None]) / self.unit[:, None, None, None]
        axis = axis[:, None, None]
        self.across = (offset * axis).sum(-1)
        self.down = offset[..., 1] * axis[..., 0] - offset[..., 0] * axis[..., 1]
        self.eye = (between.norm(dim=1) / self.unit / 2)[:, None, None]  # how far an eye lies from the middle
        self.soft = (1 / self.unit)[:, None, None]  # a pixel


def _wear(
    photos: Tensor, landmarks: Tensor, generator: torch.Generator, amount: Randomisation, hair: Tensor | None
) -> Tensor:
    """Photos with hair in the face, glasses, hats and occluders, in this order."""
    if hair is None:
        hair = rand(generator, len(photos), 3) * rand(generator, len(photos), 1)
    size = tuple(photos.shape[1:3])

    def layer(cover: Callable[[_Face, torch.Generator, Tensor], tuple[Tensor, Tensor]]):
        def change(part: Tensor, rows: Tensor) -> Tensor:
            colour, opacity = cover(_Face(landmarks[rows], size), generator, hair[rows])
            return torch.lerp(part, colour, opacity[..., None])

        return change

    for share, cover in (
        (amount.hair, _fallen_hair),
        (amount.glasses, _glasses),
        (amount.hats, _hat),
        (amount.occluders, _occluder),
    ):
        photos = _on_share(photos, share, generator, layer(cover))
    return photos


def _edge(distance: Tensor, soft: Tensor) -> Tensor:
    """1 inside (negative distances) … 0 outside, `soft` wide."""
    return (0.5 - distance / soft).clamp(0, 1)


def _per_photo(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * rand(generator, count, 1, 1)


def _glasses(face: _Face, generator: torch.Generator, hair: Tensor) -> tuple[Tensor, Tensor]:
    n = len(hair)
    width, height = _per_photo(generator, n, 0.30, 0.46), _per_photo(generator, n, 0.22, 0.38)
    rim, power = _per_photo(generator, n, 0.02, 0.07), _per_photo(generator, n, 2, 5)
    down = face.down - _per_photo(generator, n, -0.05, 0.12)
    narrowed = (width * (0.4 + 1.2 * face.eye)).clamp(max=0.48)  # of a turned face
    across = (face.across.abs() - face.eye) / narrowed
    radius = (across.abs() ** power + (down / height).abs() ** power) ** (1 / power)
    distance = (radius - 1) * torch.minimum(narrowed, height)
    inside = _edge(distance, face.soft)
    frame = _edge(distance.abs() - rim, face.soft)
    bar = _edge((down + 0.4 * height).abs() - rim, face.soft)
    between = bar * (face.across.abs() < face.eye)
    temples = bar * (face.across.abs() > face.eye + narrowed) * (face.across.abs() < 1.25)
    frame = torch.maximum(frame, torch.maximum(between * (1 - inside), temples))
    dark = rand(generator, n, 1, 1) < 1 / 3
    glass = torch.where(dark, _per_photo(generator, n, 0.75, 1.0), _per_photo(generator, n, 0, 0.12)) * inside
    tint = torch.where(dark, 0.12, 0.9)[..., None] * rand(generator, n, 1, 1, 3)
    mirrored = (0.25 * rand(generator, n, 1, 1) * (0.5 - face.down - face.across).clamp(0, 1))[..., None]
    frame_colour = rand(generator, n, 1, 1, 3) * rand(generator, n, 1, 1, 1)
    colour = torch.lerp(tint + mirrored, frame_colour.expand_as(tint + mirrored), frame[..., None])
    return colour, torch.maximum(glass, frame)


def _hat(face: _Face, generator: torch.Generator, hair: Tensor) -> tuple[Tensor, Tensor]:
    n = len(hair)
    brim = _per_photo(generator, n, -0.95, -0.45) + _per_photo(generator, n, -0.05, 0.25) * face.across.square()
    brim = brim + _per_photo(generator, n, -0.15, 0.15) * face.across
    hat = _edge(face.down - brim, face.soft) * _edge(face.across.abs() - _per_photo(generator, n, 1.05, 1.6), face.soft)
    middle, wide, tall = (
        _per_photo(generator, n, *limits) for limits in ((0.3, 0.55), (0.88, 1.15), (1.2, 1.5))
    )  # of what a hood leaves open
    hood = _edge(1 - ((face.across / wide).square() + ((face.down - middle) / tall).square()).sqrt(), face.soft)
    hood = hood * (face.down < _per_photo(generator, n, 0.9, 2.5))
    opacity = torch.where(rand(generator, n, 1, 1) < 1 / 3, hood, hat)
    band = (face.down > brim - _per_photo(generator, n, 0.05, 0.3)).float()
    first, second = rand(generator, n, 1, 1, 3), rand(generator, n, 1, 1, 3)
    shade = 1 - 0.4 * (face.across + _per_photo(generator, n, -0.5, 0.5)).square()[..., None].clamp(max=1.5)
    return _textured(torch.lerp(first, second, band[..., None]) * shade, face, generator), opacity


def _fallen_hair(face: _Face, generator: torch.Generator, hair: Tensor) -> tuple[Tensor, Tensor]:
    n = len(hair)
    phase = _per_photo(generator, n, 0, 6.28)
    strands = torch.sin(face.across * _per_photo(generator, n, 15, 45) + face.down * 4 + phase)
    strands = strands + 0.6 * torch.sin(face.across * 71 + face.down * 9 + 2 * phase)
    fringe = _per_photo(generator, n, -0.55, 0.12) + _per_photo(generator, n, -0.5, 0.5) * face.across
    over = _edge(face.down - fringe - 0.06 * strands, 2 * face.soft)
    side = torch.where(rand(generator, n, 1, 1) < 0.5, -1.0, 1.0)
    curtain = _per_photo(generator, n, 0.35, 0.85) + 0.12 * torch.sin(2 * face.down + phase)
    beside = _edge(curtain - side * face.across - 0.03 * strands, 2 * face.soft)
    both = _edge(curtain + 0.15 - face.across.abs() - 0.03 * strands, 2 * face.soft)
    kind = randint(generator, 3, n, 1, 1)
    cover = torch.where(kind == 0, over, torch.where(kind == 1, beside, torch.maximum(both, over)))
    cover = cover * _edge(face.across.abs() - 1.15, face.soft)
    return hair[:, None, None] * (1 + 0.15 * strands[..., None]), cover * _per_photo(generator, n, 0.8, 1)


def _occluder(face: _Face, generator: torch.Generator, hair: Tensor) -> tuple[Tensor, Tensor]:
    """A hand of parallel fingers, a microphone, or a disc; they come from below or from the sides."""
    n = len(hair)
    angle = torch.pi * (0.5 + 0.45 * randn(generator, n, 1, 1))  # of the way that it points away from the face
    along_x, along_y = angle.cos(), angle.sin()
    x = face.across - _per_photo(generator, n, -0.7, 0.7)
    y = face.down - _per_photo(generator, n, 0.5, 1.6)
    along, beside = x * along_x + y * along_y, y * along_x - x * along_y
    width = _per_photo(generator, n, 0.10, 0.18)
    finger = torch.remainder(beside, 2 * width) - width
    hand = torch.hypot(finger, along.clamp(max=0)) - 0.94 * width
    hand = torch.maximum(hand, beside.abs() - HAND_FINGERS * width)
    ball = _per_photo(generator, n, 0.2, 0.45)
    handle = torch.maximum(beside.abs() - 0.5 * ball, -along)
    disc = torch.hypot(along, beside) - ball
    kind = randint(generator, 3, n, 1, 1)
    distance = torch.where(kind == 0, hand, torch.where(kind == 1, torch.minimum(disc, handle), disc))
    skin = torch.lerp(
        constant(_DARK_SKIN, hair.device), constant(_LIGHT_SKIN, hair.device), rand(generator, n, 1, 1, 1)
    )
    object_colour = rand(generator, n, 1, 1, 3) * rand(generator, n, 1, 1, 1)
    colour = torch.where((kind == 0)[..., None], skin, object_colour)
    shade = 1 - 0.35 * (distance / width + 1).clamp(0, 1)[..., None]
    return _textured(colour * shade, face, generator), _edge(distance, 1.5 * face.soft)


def _textured(colour: Tensor, face: _Face, generator: torch.Generator) -> Tensor:
    """Colours (n, H, W, 3) with stripes or a weave, mostly faint."""
    n = len(colour)
    weave = torch.sin(face.across * _per_photo(generator, n, 3, 40)) + torch.sin(
        face.down * _per_photo(generator, n, 3, 40)
    )
    return colour * (1 + 0.15 * rand(generator, n, 1, 1, 1).square() * weave[..., None])


def _bend(photos: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Photos through a lens: rays bent with the square of the distance, and a picture plane that is tilted."""
    count, height, width = photos.shape[:3]
    y, x = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n, device=photos.device) for n in (height, width))
    place = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)[None]
    bent = 1 + 0.05 * amount * (2 * rand(generator, count, 1, 1, 1) - 1) * place.square().sum(-1, keepdim=True)
    tilt = 0.05 * amount * (2 * rand(generator, count, 1, 1, 2) - 1)
    grid = place * bent * (1 + (place * tilt).sum(-1, keepdim=True))
    x = F.grid_sample(photos.movedim(-1, 1), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return x.movedim(1, -1)


def _light(photos: Tensor, landmarks: Tensor, generator: torch.Generator, amount: Randomisation) -> Tensor:
    """Photos (B, H, W, 3) under another lamp, exposed and balanced otherwise."""
    count = len(photos)
    face = _Face(landmarks, tuple(photos.shape[1:3]))

    def uniform(channels: int = 1) -> Tensor:
        return 2 * rand(generator, count, 1, 1, channels) - 1

    along = face.across[..., None] * uniform() + (face.down[..., None] - 0.4) * uniform()
    stops = 0.42 * amount.light * along.clamp(-1.4, 1.4) * (1 + 0.15 * uniform(3))
    angle = torch.pi * uniform()[..., 0]
    beyond = face.across * angle.cos() + (face.down - 0.4) * angle.sin() - 0.6 * uniform()[..., 0]
    shade = (0.5 + beyond / (0.05 + 0.5 * rand(generator, count, 1, 1))).clamp(0, 1)
    shaded = rand(generator, count, 1, 1) < amount.shadows
    stops = stops - (shade * shaded * rand(generator, count, 1, 1))[..., None]
    stops = stops + 0.5 * amount.exposure * uniform() + 0.17 * amount.white_balance * uniform(3)
    gamma = (0.288 * amount.exposure * uniform()).exp()
    # Stops count in linear light, and a picture's values are its 2.2th root.
    lit = photos.clamp(min=1e-4) ** gamma * torch.exp2(stops / 2.2)
    grey = lit.mean(-1, keepdim=True)
    return (grey + (lit - grey) * (1 + 0.25 * amount.white_balance * uniform())).clamp(0, 1)


def _blur(x: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Pictures (B, 3, H, W) out of focus and moved, each by a Gaussian kernel of its own."""
    count = len(x)
    angle = torch.pi * rand(generator, count, 1, 1)
    wide = 0.2 + 1.4 * amount * rand(generator, count, 1, 1).square()
    moved = 1.4 * amount * rand(generator, count, 1, 1) * (rand(generator, count, 1, 1) < 0.3)
    long = (wide.square() + moved.square()).sqrt()
    offset = torch.arange(TAPS, device=x.device, dtype=torch.float32) - TAPS // 2
    along = offset * angle.cos() + offset[:, None] * angle.sin()
    beside = offset[:, None] * angle.cos() - offset * angle.sin()
    kernel = torch.exp(-0.5 * ((along / long).square() + (beside / wide).square()))
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).repeat_interleave(3, 0)[:, None]
    padded = F.pad(x.reshape(1, -1, *x.shape[2:]), (TAPS // 2,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=3 * count).reshape(x.shape)


def _grain(x: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Pictures (B, 3, H, W) with grain: fine and coarse, partly alike in all channels, stronger in the dark."""
    count, _, height, width = x.shape
    fine = randn(generator, count, 3, height, width) + randn(generator, count, 1, height, width)
    coarse = F.interpolate(randn(generator, count, 1, height // 2, width // 2), (height, width), mode="bilinear")
    strength = 0.03 * amount * rand(generator, count, 1, 1, 1).square()
    return x + strength * (fine + coarse) * (1.3 - x)
