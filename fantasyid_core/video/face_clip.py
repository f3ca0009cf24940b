"""One person's face cut out of a video as a steady clip of the model's size, and put back.

Between the two the clip may be encoded, noised in part and drawn again: the face is repaired, everything else in the
video stays as it is, bit by bit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection.face_contours import CONTOURS
from ..detection.face_track import FaceTrack
from ..dit.config import TIME_SCALE
from ..errors import ImageError
from ..images import as_photos, resample, sample_places
from ..optional_import import require

AROUND, GROWTH, FEATHER = 2.2, 1.15, 0.06
_STEADY = 0.25  # seconds over which the cut-out's place and size are averaged
_JUMP = 0.75  # face sizes from frame to frame: a cut, over which nothing is averaged
_MARGIN = 0.02  # of the clip's side, in which the mask falls to 0 in any case
_MAX_SAMPLES = 4  # per pixel and direction, where the face is larger than the clip
_OVAL = CONTOURS[0]


@dataclass(frozen=True, eq=False)
class FaceClip:
    """A face's clip and where it belongs.

    Attributes:
        frames: (N, h, w, 3) float32 0…1; N is T or, to be a multiple of 4 plus 1, more: then the last is repeated.
        to_clip: (T, 3) px of the video → px of the clip: scale, shift in x, shift in y.
        mask: (T, h, w) 0…1, soft: the face; 0 in frames that do not show it.
        size: frames, height and width of the video.
    """

    frames: Tensor
    to_clip: Tensor
    mask: Tensor
    size: tuple[int, int, int]

    @property
    def present(self) -> Tensor:
        """(T,) bool, which frames show the face."""
        return self.mask.flatten(1).any(1)


def cut_out(
    frames: Tensor,
    track: FaceTrack,
    height: int,
    width: int,
    *,
    around: float = AROUND,
    progress: Callable[[int], None] | None = None,
) -> FaceClip:
    """Cut one person's face out of a video.

    Args:
        frames: (T, H, W, C) as `images.as_photos` takes them; T as in `track`.
        track: where the face is.
        height, width: of the clip, px.
        around: the clip's shorter side in sizes of the face. What lies outside of the video repeats its edge.
        progress: called with the number of frames that are done.

    Raises:
        ImageError: video and track are of different length.
    """
    if len(frames) != len(track.present):
        raise ImageError(
            f"The video has {len(frames)} frames, but the face was followed in {len(track.present)}. Connect the same "
            "frames to both."
        )
    to_clip = _steady_cuts(track, height, width, around)
    clips, masks = [], []
    for number, frame in enumerate(frames):
        photo = as_photos(frame)[0]
        clips.append(_warp(photo.movedim(-1, 0), to_clip[number], height, width).movedim(0, -1).clamp(0, 1).cpu())
        masks.append(_oval_mask(track.points[number], to_clip[number], height, width))
        if progress is not None:
            progress(number + 1)
    repeats = -(len(clips) - 1) % TIME_SCALE
    clips += clips[-1:] * repeats
    height, width = frames.shape[1:3]
    return FaceClip(torch.stack(clips), to_clip, torch.stack(masks), (len(frames), height, width))


def paste(
    frames: Tensor,
    clip: FaceClip,
    drawn: Tensor,
    *,
    match_colours: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Put a clip that was drawn again back into the video that it was cut from.

    Args:
        frames: (T, H, W, C), the video.
        clip: where it was cut, by `cut_out`.
        drawn: (n, h', w', 3) float 0…1 of any size; n ≥ T frames, of which the first T count.
        match_colours: 0…1, how far its mean colour is moved to that of the video along the mask's edge.

    Returns:
        frames (T, H, W, C), every pixel outside of the mask as it was, and the mask (T, H, W) 0…1 on the video.

    Raises:
        ImageError: the video or the drawn clip are not those that belong to `clip`.
    """
    _check(frames, clip, drawn)
    pasted = frames.clone()
    masks = torch.zeros(clip.size)
    offsets = match_colours * _colour_offsets(clip, drawn)
    for number in clip.present.nonzero().flatten().tolist():
        box, mask, face = _place(clip, number, drawn[number].float() + offsets[number].to(drawn.device))
        (top, bottom, left, right), own = box, pasted[number]
        region = own[top:bottom, left:right, :3]
        mask = mask.to(region)
        mixed = region + mask[..., None] * (face.to(region).clamp(0, 1) - region)
        own[top:bottom, left:right, :3] = torch.where(mask[..., None] > 0, mixed, region)
        masks[number, top:bottom, left:right] = mask.float().cpu()
        if progress is not None:
            progress(number + 1)
    return pasted, masks


def _check(frames: Tensor, clip: FaceClip, drawn: Tensor) -> None:
    count, height, width = clip.size
    if tuple(frames.shape[:3]) != clip.size:
        raise ImageError(
            f"The face was cut out of {count} frames of {width} × {height} pixels, but the video here has "
            f"{frames.shape[0]} of {frames.shape[2]} × {frames.shape[1]}. Connect the frames that went into FantasyID "
            "Face Track."
        )
    if len(drawn) < count or drawn.ndim != 4 or drawn.shape[3] < 3:
        raise ImageError(
            f"The drawn clip has {len(drawn)} frames, but the face was cut out of {count}. Draw all frames of the clip "
            "again, not a part of them."
        )
    if not bool(drawn.isfinite().all()):
        raise ImageError("The drawn clip has values that are no numbers (NaN). Use other settings and sample it again.")


def _steady_cuts(track: FaceTrack, height: int, width: int, around: float) -> Tensor:
    """(T, 3) scale and shifts: place and size of the face, held where it is missing, averaged over time."""
    seen = track.present.nonzero().flatten()
    points = track.points[seen, :, :2]
    low, high = points.amin(1), points.amax(1)
    boxes = torch.cat([(low + high) / 2, (high - low).amax(1, keepdim=True)], 1)  # x, y, size
    nearest = (torch.arange(len(track.present))[:, None] - seen).abs().argmin(1)
    boxes = torch.cat([_averaged(part, _STEADY * track.fps) for part in _shots(boxes[nearest])])
    scale = min(height, width) / (around * boxes[:, 2]).clamp(min=1e-3)
    shift = torch.tensor([(width - 1) / 2, (height - 1) / 2]) - scale[:, None] * boxes[:, :2]
    return torch.cat([scale[:, None], shift], 1)


def _shots(boxes: Tensor) -> Iterable[Tensor]:
    """Boxes (T, 3) cut where the face jumps."""
    steps = (boxes[1:, :2] - boxes[:-1, :2]).norm(dim=1) > _JUMP * boxes[:-1, 2]
    starts = [0, *(steps.nonzero().flatten() + 1).tolist(), len(boxes)]
    return [boxes[a:b] for a, b in pairwise(starts)]


def _averaged(values: Tensor, deviation: float) -> Tensor:
    """Values (T, K) averaged over neighbours by a Gaussian of so many frames; straight lines stay straight."""
    at = torch.arange(len(values), dtype=torch.float32)
    weights = torch.exp(-((at[:, None] - at).square()) / (2 * max(deviation, 1e-3) ** 2))
    reach = torch.minimum(at, len(values) - 1 - at)[:, None] + 0.5  # the same on both sides, so that ends do not lag
    weights = weights * ((at[:, None] - at).abs() <= reach)
    return (weights / weights.sum(1, keepdim=True)) @ values


def _warp(picture: Tensor, to_clip: Tensor, height: int, width: int) -> Tensor:
    """(C, height, width) of a picture (C, H, W); a pixel is the mean of as many samples as it covers pixels."""
    scale = float(to_clip[0])
    samples = min(_MAX_SAMPLES, max(1, round(1 / scale)))
    places = (sample_places(height, width, samples, picture.device) - to_clip[1:].to(picture.device)) / scale
    return resample(picture, places, samples, "bicubic")


def _place(clip: FaceClip, number: int, drawn: Tensor) -> tuple[tuple[int, int, int, int], Tensor, Tensor]:
    """Where one frame of a drawn clip (h', w', 3) lies in the video: top, bottom, left, right; mask and face there."""
    scale, x0, y0 = clip.to_clip[number].tolist()
    height, width = clip.mask.shape[1:]
    left, top = max(0, int(-x0 / scale)), max(0, int(-y0 / scale))
    right = min(clip.size[2], int((width - 1 - x0) / scale) + 2)
    bottom = min(clip.size[1], int((height - 1 - y0) / scale) + 2)
    back = torch.tensor([1 / scale, -x0 / scale - left, -y0 / scale - top])
    mask = _warp(clip.mask[number][None], back, bottom - top, right - left)[0].clamp(0, 1)
    larger = drawn.shape[1] / width  # drawn px per px of the clip; its first pixel's middle moves, too
    back = torch.tensor([1 / (scale * larger), 0.0, 0.0])
    back[1] = (-x0 / scale - left) + (0.5 - 0.5 * larger) / (scale * larger)
    back[2] = (-y0 / scale - top) + (0.5 - 0.5 * larger) / (scale * larger)
    face = _warp(drawn[..., :3].movedim(-1, 0), back, bottom - top, right - left).movedim(0, -1)
    return (top, bottom, left, right), mask, face


def _oval_mask(points: Tensor, to_clip: Tensor, height: int, width: int) -> Tensor:
    """(height, width) 0…1: the face's oval, somewhat larger, with a soft edge; 0 where the points are not known."""
    if not bool(points.isfinite().all()):
        return torch.zeros(height, width)
    Image = require("PIL.Image", "Drawing a face's mask", "pillow")
    ImageDraw = require("PIL.ImageDraw", "Drawing a face's mask", "pillow")
    oval = points[list(_OVAL), :2] * to_clip[0] + to_clip[1:]
    middle = oval.mean(0)
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).polygon([tuple(p) for p in (middle + GROWTH * (oval - middle)).tolist()], fill=255)
    mask = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, 1, height, width).float() / 255
    radius = max(1, round(FEATHER * min(height, width) / 2))
    for _ in range(3):  # three box filters are nearly a Gaussian
        mask = F.avg_pool2d(mask, 2 * radius + 1, 1, radius, count_include_pad=False)
    return mask[0, 0] * _edge_ramp(height)[:, None] * _edge_ramp(width)


def _edge_ramp(count: int) -> Tensor:
    """(count,) 0 at both ends, 1 from a margin on."""
    at = torch.arange(count)
    return (torch.minimum(at, count - 1 - at) / max(1.0, _MARGIN * count)).clamp(max=1)


def _colour_offsets(clip: FaceClip, drawn: Tensor) -> Tensor:
    """(T, 3) from the drawn clip's mean colour to the video's along the mask's soft edge, averaged over time."""
    count, (height, width) = clip.size[0], clip.mask.shape[1:]
    small = F.interpolate(drawn[:count, ..., :3].float().cpu().movedim(-1, 1), (height, width), mode="area").movedim(
        1, -1
    )
    edge = (clip.mask * (1 - clip.mask))[..., None]
    apart = (edge * (clip.frames[:count] - small)).sum((1, 2)) / edge.sum((1, 2)).clamp(min=1e-6)
    return _averaged(apart, 2.0)
