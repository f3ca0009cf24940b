"""One real clip → what identity training needs of it: latents of a window, its text, pictures of its person."""

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.detection.faces import detect
from fantasyid_core.dit.config import TIME_SCALE
from fantasyid_core.errors import TrainingError
from fantasyid_core.reconstruction.deca_input import prepare
from fantasyid_core.video.latents import SPACE_SCALE

from ..latents import encode
from .clip_files import measure, read_caption, read_frames
from .options import IdentityOptions
from .stage import Context

REFERENCES = 4  # pictures of the person that are kept of each clip


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """What is kept of a clip, on the CPU.

    Attributes:
        latents: (t, 16, h, w) of its window; face_mask: (t, h, w) 0 or 1, where the face is in them.
        text: (L, D) text embeddings of the caption.
        crops: (R, 512, 512, 3) uint8, R ≤ `REFERENCES` aligned crops; vertices: (R, V, 3), the shapes seen with them.
        frames: which frames of the clip the R pictures are.
        window: which frames of the clip the latents are.
        middle: (1, H, W, 3) uint8, the window's middle frame.
    """

    latents: Tensor
    face_mask: Tensor
    text: Tensor
    crops: Tensor
    vertices: Tensor
    frames: tuple[int, ...]
    window: range
    middle: Tensor


@dataclass(frozen=True, eq=False)
class _View:
    """A frame's largest face: box (4,) px, crop (512, 512, 3) uint8, what the regressor looks at (1, 3, 224, 224)."""

    box: Tensor
    crop: Tensor
    photo: Tensor


@torch.no_grad()
def prepare_clip(
    path: Path, context: Context, options: IdentityOptions, embed_text: Callable[[str], Tensor], dtype: torch.dtype
) -> PreparedClip:
    """Read a clip. Latents and vertices are of the model's own autoencoder, regressor and face model.

    Args:
        options: of which `fps` and `multi_view` are read.
        embed_text: a caption's embeddings (L, D).
        dtype: of the latents that are kept.

    Raises:
        TrainingError: the clip or its caption cannot be read, it is too short, or no face is seen in it.
    """
    model, device = context.model, context.device
    config = model.transformer.config
    size = (config.sample_height * SPACE_SCALE, config.sample_width * SPACE_SCALE)
    caption = read_caption(path)
    count, fps = measure(path)
    window = choose_window(count, config.sample_frames, fps / options.fps, f"{context.settings.seed} {path.name}")
    outside = [i for i in range(count) if not window[0] <= i <= window[-1]]
    searched = {*window[::TIME_SCALE], *(_spread(outside) if options.multi_view else ())}
    pictures, views, scale = _read(path, window, searched, size, device)
    if not views:
        raise TrainingError("no face is seen in it")
    boxes = {i: view.box * scale for i, view in views.items() if i in window}
    corner = _corner(list(boxes.values()), pictures[window[0]].shape[:2], size)
    pixels = torch.stack([pictures[i][corner[1] :, corner[0] :][: size[0], : size[1]] for i in window])
    others = [i for i in sorted(views) if i in outside]
    chosen = others or _spread(sorted(views))
    with context.autocast():
        latents = encode(model.vae, pixels[None].to(device))[0]
        code = model.regressor(torch.cat([views[i].photo for i in chosen]).to(device)).float()
    shift = torch.tensor([*corner, *corner])
    return PreparedClip(
        latents=latents.to("cpu", dtype),
        face_mask=torch.stack([_ellipse(_nearest(boxes, i), shift, latents.shape[-2:]) for i in window[::TIME_SCALE]]),
        text=embed_text(caption),
        crops=torch.stack([views[i].crop for i in chosen]),
        vertices=model.face.decode(code[:, :100]).cpu(),
        frames=tuple(chosen),
        window=window,
        middle=pixels[len(window) // 2, None].cpu(),
    )


def _read(
    path: Path, window: range, searched: Collection[int], size: tuple[int, int], device: torch.device
) -> tuple[dict[int, Tensor], dict[int, _View], float]:
    """Frames of the window that cover `size`, faces of the frames `searched`, and how much the frames were scaled."""
    pictures, views, scale = {}, {}, 1.0
    for i, frame in read_frames(path, {*window, *searched}):
        view = _view(frame, device) if i in searched else None
        if view is not None:
            views[i] = view
        if i in window:
            pictures[i] = _covering(frame.to(device), size)
            scale = pictures[i].shape[0] / frame.shape[0]
    return pictures, views, scale


def choose_window(count: int, length: int, stride: float, seed: str) -> range:
    """`length` of `count` frames, about every `stride`th, from a place that `seed` decides.

    Raises:
        TrainingError: there are not as many frames.
    """
    if count < length:
        raise TrainingError(f"it has {count} frames, and the model is trained on {length}")
    step = min(max(1, round(stride)), (count - 1) // max(1, length - 1))
    span = (length - 1) * step + 1
    draw = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    first = int(torch.randint(count - span + 1, (), generator=draw))
    return range(first, first + span, step)


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most `REFERENCES` of them, evenly."""
    places = torch.linspace(0, len(numbers) - 1, min(REFERENCES, len(numbers))).round().long().tolist()
    return [numbers[i] for i in places]


def _view(frame: Tensor, device: torch.device) -> _View | None:
    faces = detect(frame.float() / 255, device=device)
    if not faces:
        return None
    return _View(faces[0].box, (faces[0].crop * 255).round().to(torch.uint8), prepare(faces[0]).image)


def _covering(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 → the same shrunk or enlarged until it just covers `size`, on the CPU."""
    height, width = frame.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    target = [max(s, round(x * scale)) for s, x in zip(size, (height, width), strict=True)]
    x = F.interpolate(frame.movedim(-1, 0)[None].float(), target, mode="bilinear", antialias=True)
    return x[0].movedim(0, -1).round().clamp(0, 255).to("cpu", torch.uint8)


def _corner(boxes: Sequence[Tensor], picture: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the part of the picture (height, width) that is used: the faces in its middle, if it can be."""
    room = [picture[1] - size[1], picture[0] - size[0]]
    if not boxes:
        return room[0] // 2, room[1] // 2
    middle = torch.stack(list(boxes)).mean(0).unflatten(0, (2, 2)).mean(0).tolist()
    left, top = (
        min(max(0, math.floor(m - side / 2)), free) for m, side, free in zip(middle, reversed(size), room, strict=True)
    )
    return left, top


def _nearest(boxes: Mapping[int, Tensor], frame: int) -> Tensor | None:
    return boxes[min(boxes, key=lambda i: abs(i - frame))] if boxes else None


def _ellipse(box: Tensor | None, shift: Tensor, latent: Sequence[int]) -> Tensor:
    """(h, w) 1 where the ellipse within the box, px less `shift`, lies on a latent's middle; 0 without a box."""
    mask = torch.zeros(*latent)
    if box is None:
        return mask
    box = box.cpu() - shift
    middle, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).clamp(min=1) / 2
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * SPACE_SCALE - 0.5 for n in latent), indexing="ij")
    return ((torch.stack([x, y], -1) - middle) / radius).square().sum(-1).le(1).float()
