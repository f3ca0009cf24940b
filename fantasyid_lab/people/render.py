"""Clips → frames: all frames of many clips at once, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.errors import ImageError
from fantasyid_core.reconstruction.rasteriser import barycentric, visible

from . import appearance
from .backdrop import backdrop
from .batching import stack_fields
from .camera import apply, face_crop, inverse, project
from .clip import Clip
from .head import HAIR, LASHES, LEFT_EYE, RIGHT_EYE, SKIN, TEETH, TONGUE, Head, load
from .light import shade

PARTS = ("background", "skin", "face", "lips", "eyes", "mouth", "hair", "shirt")
"""What a pixel may show; the numbers in `RenderedClips.parts`."""
GAMMA = 2.2
_SHOULDER = 0.7
SAMPLES = 2  # per pixel and direction
_GLINT = 0.011  # m from the eyeball's middle to the mirrored lamp when that is at the side
_BATCH = {"cpu": 4, "mps": 16}  # of 160 × 160 at a time
_CUDA_BATCH, _CUDA_BYTES = 256, 300 << 20  # at most, and of the card's memory for each; 28 MB is what one takes


@dataclass(frozen=True, eq=False)
class RenderedClips:
    """B clips of T frames, on the device they were asked for on.

    Attributes:
        frames: (B, T, size, size, 3) float32 0…1, sRGB.
        parts: (B, T, size, size) uint8, which of `PARTS` each pixel shows (at its first of four samples).
        landmarks: (B, T, 68, 2) float32 px as `Head.landmarks`; the first five are the detector's.
        pose: (B, T, 3) float32 degrees of yaw, pitch and roll, the camera's (and a crop's) roll included.
        expression: (B, T, 50) float32 0…1.
    """

    frames: Tensor
    parts: Tensor
    landmarks: Tensor
    pose: Tensor
    expression: Tensor


def render(
    clips: Sequence[Clip], size: int = 160, device: torch.device | str = "cpu", crop: Tensor | None = None
) -> RenderedClips:
    """Draw clips, all of the same number of frames.

    Args:
        clips: what to draw.
        size: side of the square pictures in px.
        crop: `None` for the camera's picture; else (B, T, 4) for FFHQ-aligned crops by the true landmarks, as
            `camera.face_crop` takes it: zeros align exactly, other values shift, scale and turn.

    Raises:
        ImageError: no clips, clips of different lengths, or a crop of another shape.
    """
    lengths = {clip.frames for clip in clips}
    if len(lengths) != 1:
        raise ImageError(f"The clips have {sorted(lengths) or 'no'} frames; expected one or more clips of one length.")
    count, length = len(clips), lengths.pop()
    if crop is not None and crop.shape != (count, length, 4):
        raise ImageError(f"The crop has shape {tuple(crop.shape)}; expected {(count, length, 4)}.")
    device = torch.device(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        model = _Model(clips, device)
        crop = None if crop is None else crop.to(model.pose).flatten(0, 1)
        step = max(1, _batch_size(device) * 160**2 // size**2)
        rendered = [
            model.draw(part, size, None if crop is None else crop[part])
            for part in torch.arange(count * length, device=device).split(step)
        ]
    frames, parts, landmarks, pose = (
        torch.cat(piece).unflatten(0, (count, length)) for piece in zip(*rendered, strict=True)
    )
    return RenderedClips(frames, parts, landmarks, pose, model.expression.unflatten(0, (count, length)))


def _batch_size(device: torch.device) -> int:
    """Frames of 160 × 160 that are drawn together. A GPU takes as many as its memory allows: drawing starts some 2,000
    kernels, however few the frames.
    """
    if device.type != "cuda":
        return _BATCH.get(device.type, 4)
    return max(1, min(_CUDA_BATCH, torch.cuda.get_device_properties(device).total_memory // _CUDA_BYTES))


class _Model:
    """Clips on the device: what is the same in all frames, and how to draw some of the frames."""

    def __init__(self, clips: Sequence[Clip], device: torch.device):
        self.device = device
        self.head = load(str(device))
        head = self.head

        def frames_of(field: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(clip, field) for clip in clips])).to(device)

        self.pose, self.expression, self.camera = frames_of("pose"), frames_of("expression"), frames_of("camera")
        self.length = clips[0].frames
        self.paint = stack_fields([clip.person.paint for clip in clips], device)
        self.scene = stack_fields([clip.scene for clip in clips], device)
        shape = torch.stack([clip.person.shape_code for clip in clips]).to(device)
        neutral, self.joints = head.neutral(shape)
        hair, collar = self.scene.hair, self.scene.collar
        self.neighbours = _adjacent_triangles(str(device))
        self.vertices = appearance.displace(head, neutral, self.normals(neutral), hair, collar)
        self.vertex_paint = appearance.paint_vertices(head, self.paint, hair, collar)
        self.triangle_mask = appearance.triangle_mask(head, hair)
        self.two_sided = (head.parts == HAIR) | (head.parts == LASHES)
        self.kinds = _part_labels(head)

    def normals(self, vertices: Tensor) -> Tensor:
        """Unit normals (n, V, 3) of vertices (n, V, 3), the mean of the adjoining triangles' by area."""
        a, b, c = (vertices.index_select(1, corner) for corner in self.head.faces.unbind(1))
        normal = F.pad(torch.linalg.cross(b - a, c - a), (0, 0, 0, 1))
        total = normal.index_select(1, self.neighbours[0])
        for triangle in self.neighbours[1:]:
            total += normal.index_select(1, triangle)
        return F.normalize(total, dim=-1, eps=1e-20)

    def draw(self, frames: Tensor, size: int, crop: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames (n, size, size, 3), parts (n, size, size), landmarks (n, 68, 2) and pose (n, 3) of those numbered."""
        head, clip = self.head, frames // self.length
        pose, camera = self.pose[frames], self.camera[frames]
        vertices = self.vertices[clip] + head.expression_offsets(self.expression[frames])
        vertices = head.linear_blend_skinning(vertices, self.joints[clip], pose)
        pixels = project(vertices, camera, size)
        roll = camera[:, 4]
        if crop is not None:
            to_crop = face_crop(pixels[:, head.landmarks[:5], :2], crop, size)
            pixels = torch.cat([apply(to_crop, pixels[..., :2]), pixels[..., 2:]], -1)
            roll = roll + torch.rad2deg(torch.atan2(to_crop[:, 1, 0], to_crop[:, 0, 0]))
        else:
            to_crop = None
        camera_pose = torch.cat([pose[:, :2], (pose[:, 2] + roll)[:, None]], 1)

        light = self.scene.light
        lighting = shade(head, self.normals(vertices), pose, light.direction[clip], light.lamp[clip], light.sky[clip])
        behind = backdrop(_select(self.scene.background, clip), _background_coordinates(to_crop, camera, size))
        picture, kinds = self._surface(clip, pixels, lighting, self._glint(clip, pose), size)
        pixel = sum(picture[:, row::SAMPLES, column::SAMPLES] for row in range(SAMPLES) for column in range(SAMPLES))
        pixel = pixel / SAMPLES**2
        colour = _tone_map(pixel[..., :3]) + (1 - pixel[..., 3:]) * behind
        image = colour.clamp(1e-6, 1) ** (1 / GAMMA)
        return image, kinds[:, ::SAMPLES, ::SAMPLES].contiguous(), pixels[:, head.landmarks, :2], camera_pose

    def _surface(
        self, clip: Tensor, pixels: Tensor, lighting: Tensor, glint: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """What n heads show at each sample: linear colour and 1 (n, S, S, 4), 0 beside them; kinds (n, S, S) uint8."""
        head, count, side = self.head, len(clip), size * SAMPLES
        subpixels = torch.cat([pixels[..., :2] * SAMPLES + (SAMPLES - 1) / 2, pixels[..., 2:]], -1)
        a, b, c = (subpixels[..., :2].index_select(1, corner) for corner in head.faces.unbind(1))
        u, v = b - a, c - a
        front_facing = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0] < 0
        index = visible(subpixels, head.faces, side, side, self.triangle_mask[clip] & (front_facing | self.two_sided))
        covered = (index.flatten() >= 0).nonzero()[:, 0]
        weights = barycentric(subpixels, head.faces, index, covered)[:, :, None].unbind(1)
        frame, triangle = covered // (side * side), index.flatten()[covered]
        owner = clip[frame]
        corners = [corner.index_select(0, triangle) for corner in head.faces.T]
        part = head.parts.index_select(0, triangle)
        albedo, gloss, worn = appearance.paint_pixels(
            _interpolate(self.vertex_paint, owner, corners, weights),
            part,
            _select(self.paint, owner),
            _select(self.scene.hair, owner),
            self.scene.shirt.index_select(0, owner),
            glint.index_select(0, frame),
        )
        light = _interpolate(lighting, frame, corners, weights)
        # Specular light has the lamp's colour, which is close to white.
        colour = albedo * light[:3].T + (0.5 * gloss * light[3])[:, None]
        kind = self.kinds.index_select(0, triangle)
        kind = torch.where(worn[:, 0] > 0.5, PARTS.index("hair"), kind)
        kind = torch.where(worn[:, 1] > 0.5, PARTS.index("shirt"), kind)
        picture = torch.zeros(count * side * side, 4, device=self.device)
        kinds = torch.zeros(count * side * side, dtype=torch.uint8, device=self.device)
        picture.index_copy_(0, covered, F.pad(colour, (0, 1), value=1.0))
        kinds.index_copy_(0, covered, kind.to(torch.uint8))
        return picture.reshape(count, side, side, 4), kinds.reshape(count, side, side)

    def _glint(self, clip: Tensor, pose: Tensor) -> Tensor:
        """(n, 2) where the lamp is mirrored in the eyes, metres from the eyeball's middle."""
        half = F.normalize(self.scene.light.direction[clip] + pose.new_tensor([0, 0, 1]), dim=1)
        yaw, pitch = torch.deg2rad(pose[:, 0]), torch.deg2rad(pose[:, 1])
        return _GLINT * torch.stack([half[:, 0] - yaw.sin(), half[:, 1] - pitch.sin()], 1)


def _interpolate(values: Tensor, batch: Tensor, corners: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Values (n, V, C) of the given n (N,) at pixels, by their triangles' corners (N,) and weights: (C, N)."""
    first, rows = batch * values.shape[1], values.flatten(0, 1)
    total = rows.index_select(0, first + corners[0]) * weights[0]
    for corner, weight in zip(corners[1:], weights[1:], strict=True):
        total.addcmul_(rows.index_select(0, first + corner), weight)
    return total.T.contiguous()


def _tone_map(colour: Tensor) -> Tensor:
    """Linear light, the brightest part compressed below 1 as film does."""
    return colour.clamp(max=_SHOULDER) + (1 - _SHOULDER) * torch.tanh((colour - _SHOULDER).relu() / (1 - _SHOULDER))


def _select(fields: SimpleNamespace, rows: Tensor) -> SimpleNamespace:
    """The given rows of all tensors."""
    return SimpleNamespace(**{name: value.index_select(0, rows) for name, value in vars(fields).items()})


def _background_coordinates(to_crop: Tensor | None, camera: Tensor, size: int) -> Tensor:
    """(n, size, size, 2) where the pixels look at the background, which moves with the camera, less than the person."""
    x, y = torch.meshgrid(*(torch.arange(size, device=camera.device, dtype=torch.float32),) * 2, indexing="xy")
    pixel = torch.stack([x, y], -1)
    if to_crop is not None:
        pixel = apply(inverse(to_crop), pixel[None])
    drift = camera[:, :2] * camera.new_tensor([1, -1]) / camera[:, 2:3]
    return (pixel - (size - 1) / 2) / size + 0.6 * drift[:, None, None]


def _part_labels(head: Head) -> Tensor:
    """(F,) number of the `PARTS` that a triangle shows, hair and shirt aside."""
    masks = head.masks[head.faces].mean(1)
    face, lips, inside = (masks[:, head.mask_names.index(name)] > 0.5 for name in ("face", "lips", "inside-mouth"))
    kind = torch.full_like(head.parts, PARTS.index("skin"))
    skin = head.parts == SKIN
    kind[skin & face] = PARTS.index("face")
    kind[skin & inside] = PARTS.index("mouth")
    kind[skin & lips] = PARTS.index("lips")
    kind[(head.parts == LEFT_EYE) | (head.parts == RIGHT_EYE) | (head.parts == LASHES)] = PARTS.index("eyes")
    kind[(head.parts == TONGUE) | (head.parts == TEETH)] = PARTS.index("mouth")
    kind[head.parts == HAIR] = PARTS.index("hair")
    return kind


@lru_cache(maxsize=4)
def _adjacent_triangles(device: str) -> Tensor:
    """(N, V) triangles about each vertex; the number of triangles where there are fewer than N."""
    faces, vertex_count = load().faces, len(load().template)
    vertices, order = faces.flatten().sort(stable=True)
    counts = torch.bincount(vertices, minlength=vertex_count)
    slot = torch.arange(len(vertices)) - (counts.cumsum(0) - counts)[vertices]
    table = torch.full((int(counts.max()), vertex_count), len(faces))
    table[slot, vertices] = order // 3
    return table.to(device)
