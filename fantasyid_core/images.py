"""Photos in: whatever a caller or a file hands over → (H, W, 3) float32, RGB, 0…1."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ImageError, cause
from .optional_import import require

MIN_SIDE = 16
MAX_SIDE = 16_384
_INTEGER_RANGE = {torch.uint8: 255.0, torch.uint16: 65_535.0}
# Resampling overshoots 1 a little and HDR by more; values beyond this are a picture in 0…255.
_LARGEST_VALUE = 64.0
_SMALL_PICTURE = 4_000_000  # pixels that may be of one colour: a small file then
_MOST_PIXELS_PER_BYTE = 1000


def as_photo(image: Tensor, name: str = "image") -> Tensor:
    """One photo as (H, W, 3) float32, RGB, 0…1, on the device it came on.

    Args:
        image: (1, H, W, C) or (H, W, C); C = 1 (grey), 3, or 4 (alpha is dropped, as image loaders do);
            uint8, uint16 or floating point in 0…1 (what lies slightly outside is clamped).
        name: how error messages call it.

    A side above 16,384 px is thinned out by a whole factor first, so that memory stays bounded.

    Raises:
        ImageError: not such a tensor, empty, under 16 px on a side, NaN or infinite.
    """
    _check_tensor(image, name)
    if image.ndim != 3 and not (image.ndim == 4 and image.shape[0] == 1):
        raise ImageError(
            f"The {name} has shape {tuple(image.shape)}; expected one picture (height, width, channels) with 1, 3 or 4 "
            "channels. Pick a single picture from the batch, or convert it to RGB."
        )
    return as_photos(image, name)[0]


def as_photos(images: Tensor, name: str = "image") -> Tensor:
    """A batch or video (B, H, W, C), or one picture (H, W, C), as (B, H, W, 3) float32; B ≥ 1, the rest as `as_photo`.

    Its values are looked at once for all frames: one synchronisation with their device.

    Raises:
        ImageError: as `as_photo`; or there is no frame.
    """
    images = _check_batch(images, name)
    height, width = images.shape[1:3]
    step = -(-max(height, width) // MAX_SIDE)
    images = images[:, ::step, ::step, :3]
    if min(images.shape[1:3]) < MIN_SIDE:
        raise ImageError(f"The {name} is {width} × {height} px, too narrow to be a photo. Crop it around the face.")
    photos = images.to(torch.float32)
    if images.dtype in _INTEGER_RANGE:
        photos = photos / _INTEGER_RANGE[images.dtype]
    low, high = torch.stack(photos.aminmax()).tolist()
    if not np.isfinite(low + high):
        raise ImageError(f"The {name} contains NaN or infinite values; check the node that made it.")
    if high > _LARGEST_VALUE:
        raise ImageError(f"The {name} has values up to {high:g}; expected 0…1. Divide it by 255 if it is in 0…255.")
    if low < 0 or high > 1:
        photos = photos.clamp(0, 1)
    return photos.expand(-1, -1, -1, 3)


def _check_batch(images: Tensor, name: str) -> Tensor:
    """(B, H, W, C), of one picture as well. Raises ImageError where its shape or dtype is no picture's."""
    _check_tensor(images, name)
    shape = tuple(images.shape)
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise ImageError(
            f"The {name} has shape {shape}; expected pictures (frames, height, width, channels) with 1, 3 or 4 "
            "channels. Convert it to RGB."
        )
    if not len(images):
        raise ImageError(f"The {name} batch is empty; expected at least one photo. Connect one.")
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"The {name} is {width} × {height} px; expected at least {MIN_SIDE} px on each side. Use a larger photo."
        )
    if not (images.is_floating_point() or images.dtype in _INTEGER_RANGE):
        raise ImageError(
            f"The {name} holds {images.dtype} values; expected float in 0…1, uint8 or uint16. Convert it first."
        )
    return images


def as_mask(mask: Tensor) -> Tensor:
    """A mask (h, w) or (1, h, w) of one photo as (h, w). Raises ImageError for another shape."""
    if mask.ndim == 3 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim != 2 or 0 in mask.shape:
        raise ImageError(
            f"The mask has shape {tuple(mask.shape)}; expected one mask (height, width) for the photo. "
            "Connect a mask that was made from this photo."
        )
    return mask


def _check_tensor(image: Tensor, name: str) -> None:
    if not isinstance(image, Tensor):
        raise ImageError(
            f"The {name} is a {type(image).__name__}; expected an image tensor (height, width, channels). "
            "Connect an IMAGE, such as that of Load Image."
        )


def load_photo(path: str | Path) -> Tensor:
    """Read a picture file → (H, W, 3) float32, RGB, 0…1.

    EXIF orientation is applied, 16-bit grey keeps its depth, palettes and CMYK become RGB, alpha is dropped.

    Raises:
        ImageError: missing, truncated or not a picture; far larger than its file can fill; or a picture that
            `as_photo` rejects.
    """
    Image = require("PIL.Image", "Reading a photo", "pillow")
    ImageOps = require("PIL.ImageOps", "Reading a photo", "pillow")
    path = Path(path)
    try:
        with Image.open(path) as file:
            _refuse_bomb(file.size, path)
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16-bit grey, "I" in files that Pillow widens to 32
                pixels = np.asarray(picture).clip(0, 65_535).astype(np.uint16)[..., None]
            else:
                pixels = np.array(picture.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageError(
            f"The photo '{path.name}' could not be read ({type(error).__name__}: {cause(error)}). "
            "It may be missing, truncated or not a picture; save it again as PNG or JPEG."
        ) from error
    return as_photo(torch.from_numpy(pixels), f"photo '{path.name}'")


def sample_places(height: int, width: int, samples: int, device: torch.device) -> Tensor:
    """Where samples² points within each pixel of a picture lie: (height · samples, width · samples, 2) px."""
    y, x = ((torch.arange(n * samples, device=device) + 0.5) / samples - 0.5 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def resample(picture: Tensor, places: Tensor, samples: int, mode: str) -> Tensor:
    """(C, h, w) of a picture (C, H, W): each pixel the mean of its samples at places (h · samples, w · samples, 2) px.

    Where the picture ends its edge goes on.
    """
    grid = (2 * places + 1) / places.new_tensor([picture.shape[2], picture.shape[1]]) - 1
    sampled = F.grid_sample(picture[None], grid[None], mode, "border", align_corners=False)
    return F.avg_pool2d(sampled, samples)[0]


def _refuse_bomb(size: tuple[int, int], path: Path) -> None:
    """Raise ImageError for a file whose header promises far more pixels than any photo packs into its bytes."""
    pixels, content = math.prod(size), path.stat().st_size
    if pixels > _SMALL_PICTURE and pixels > _MOST_PIXELS_PER_BYTE * content:
        raise ImageError(
            f"The photo '{path.name}' says that it is {size[0]} × {size[1]} px, but has only {content:,} bytes: it is "
            "damaged or not a photo. Save it again as PNG or JPEG."
        )


def resize(photo: Tensor, height: int, width: int) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) → the same at height × width, bilinear, antialiased when it shrinks."""
    if photo.shape[-3:-1] == (height, width):
        return photo
    channels_first = photo.movedim(-1, -3)
    batched = channels_first if photo.ndim == 4 else channels_first[None]
    resized = F.interpolate(batched, (height, width), mode="bilinear", antialias=True)
    return (resized if photo.ndim == 4 else resized[0]).movedim(-3, -1)


def as_bytes(image: Tensor) -> Tensor:
    """(…) float 0…1 → (…) uint8 0…255 on the CPU, rounded."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def to_pil(photo: Tensor):
    """(H, W, 3) float 0…1 → 8-bit PIL image, to draw on."""
    Image = require("PIL.Image", "Drawing a preview", "pillow")
    return Image.fromarray(as_bytes(photo.detach()).numpy())


def from_pil(picture) -> Tensor:
    """PIL RGB image → (H, W, 3) float32 0…1."""
    return torch.from_numpy(np.array(picture)).float() / 255


def label(draw, corner: tuple[float, float], text: str, colour: tuple[int, int, int] = (255, 255, 255)) -> None:
    """Write `text` on a dark ground with its top left at `corner`, moved into the picture where that is outside."""
    corner = (max(0, corner[0]), max(0, corner[1]))
    x0, y0, x1, y1 = draw.textbbox(corner, text)
    draw.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), fill=(0, 0, 0))
    draw.text(corner, text, fill=colour)
