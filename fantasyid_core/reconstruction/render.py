"""Pictures of meshes: a shaded preview, a turntable, and the mesh laid over its photo. PyTorch, on any device.

All light the mesh in the picture's own space (x right, y down, z away from the viewer), from the viewer's upper right.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MeshError
from ..images import resize
from .flame import axis_angle_to_matrix
from .rasteriser import check, rasterise, z_buffer

OPACITY = 0.7
# Pixels of dots looked at in one go; bounds the memory at about 100 MB.
_PAIRS = 1 << 20
_LIGHT = (0.35, -0.45, -0.82)
_COLOUR = (0.80, 0.76, 0.72)
_BACKGROUND = 0.12
_MARGIN = 0.9


def shade(vertices: Tensor, faces: Tensor | None, size: int = 512) -> Tensor:
    """Frontal orthographic preview of a mesh; a cloud of dots without `faces`.

    Args:
        vertices: (V, 3) float, y up, z towards the viewer (FLAME's space, any unit: the mesh is fitted to the picture).
        faces: (F, 3) int64 or None.

    Returns:
        (size, size, 3) float32 0…1 on the mesh's device.

    Raises:
        MeshError: wrong shapes, not finite, or indices outside the vertices.
    """
    vertices = _one_mesh(vertices, faces)
    low, high = vertices.amin(0), vertices.amax(0)
    scale = _MARGIN * size / (high - low)[:2].amax().clamp(min=1e-12)
    return _picture(((vertices - (low + high) / 2) * scale)[None], faces, size)[0]


def turntable(vertices: Tensor, faces: Tensor | None, frames: int = 24, size: int = 512) -> Tensor:
    """A mesh turning once around its vertical axis, to the picture's right, from the front on; like `shade` otherwise.

    Returns:
        (frames, size, size, 3) float32 0…1. The frame after the last would be the first.

    Raises:
        MeshError: as `shade`, or less than one frame.
    """
    if frames < 1:
        raise MeshError(f"A turntable of {frames} frames was asked for; expected at least 1. Set frames to 24.")
    vertices = _one_mesh(vertices, faces)
    centred = vertices - (vertices.amin(0) + vertices.amax(0)) / 2
    reach = torch.maximum(torch.hypot(centred[:, 0], centred[:, 2]).amax(), centred[:, 1].abs().amax())
    angle = torch.arange(frames, device=vertices.device) * (2 * torch.pi / frames)
    nil = torch.zeros_like(angle)
    turned = centred @ axis_angle_to_matrix(torch.stack([nil, angle, nil], 1)).mT
    return _picture(turned * (_MARGIN * size / 2 / reach.clamp(min=1e-12)), faces, size)


def shade_moving(vertices: Tensor, faces: Tensor | None, middle: Tensor, reach: float, size: int = 512) -> Tensor:
    """Frames of a mesh, all from one place; like `shade` otherwise.

    Args:
        vertices: (T, V, 3) float.
        middle: (3,) what the picture's middle shows; reach: how far from there the picture's edge is at least.

    Returns:
        (T, size, size, 3) float32 0…1.
    """
    scale = _MARGIN * size / 2 / max(reach, 1e-12)
    return torch.cat([_picture((frame - middle) * scale, faces, size) for frame in vertices.split(1)])


def overlay(
    photo: Tensor, in_photo: Tensor, faces: Tensor | None, opacity: float = OPACITY, long_side: int = 1024
) -> Tensor:
    """A photo with a mesh over it, to see how well it fits.

    Args:
        photo: (H, W, 3) float 0…1.
        in_photo: (V, 3) px of the photo, z growing away from the viewer (`FaceMesh.in_photo`).
        faces: (F, 3) int64, or None for dots.
        opacity: of the mesh, 0…1.

    Returns:
        (h, w, 3) float32 0…1, the photo reduced to a long side of at most `long_side`.

    Raises:
        MeshError: as `shade`.
    """
    px = _one_mesh(in_photo, faces)
    height, width = photo.shape[:2]
    reduction = min(1.0, long_side / max(height, width))
    picture = resize(photo.float(), max(1, round(height * reduction)), max(1, round(width * reduction)))
    height, width = picture.shape[0] / height, picture.shape[1] / width
    px = (px + 0.5) * px.new_tensor([width, height, reduction]) - 0.5
    shown, brightness = _lit(px[None], faces, *picture.shape[:2])
    colour = brightness[0, ..., None] * brightness.new_tensor(_COLOUR)
    return torch.lerp(picture, colour, opacity * shown[0, ..., None].float()).clamp(0, 1)


def normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vertex normals (…, V, 3), the mean of the adjoining triangles' by area."""
    a, b, c = vertices[..., faces, :].unbind(-2)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add(-2, faces.flatten(), normal.repeat_interleave(3, -2))
    return F.normalize(total, dim=-1, eps=1e-20)


def _one_mesh(vertices: Tensor, faces: Tensor | None) -> Tensor:
    check(vertices, faces)
    if vertices.ndim != 2:
        raise MeshError(
            f"The vertices have shape {tuple(vertices.shape)}; expected one mesh, (vertices, 3). Load the mesh again."
        )
    if not vertices.isfinite().all():
        raise MeshError("The mesh has NaN or infinite vertices; compute it again or use another file.")
    return vertices.float()


def _picture(centred: Tensor, faces: Tensor | None, size: int) -> Tensor:
    """Meshes (B, V, 3) around 0, y up, in px, before a dark ground: (B, size, size, 3)."""
    px = centred * centred.new_tensor([1, -1, -1]) + centred.new_tensor([size / 2 - 0.5, size / 2 - 0.5, 0])
    shown, brightness = _lit(px, faces, size, size)
    colour = brightness[..., None] * brightness.new_tensor(_COLOUR)
    return torch.where(shown[..., None], colour, _BACKGROUND).clamp(0, 1)


def _lit(px: Tensor, faces: Tensor | None, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which pixels meshes (B, V, 3) cover, and how bright they are there: (B, height, width) each."""
    if faces is None:
        return _dots(px, height, width)
    index, weights = rasterise(px, faces, height, width)
    shown = index >= 0
    mesh = shown.nonzero()[:, :1]
    corner_normals = normals(px, faces)[mesh, faces[index[shown]]]
    normal = F.normalize((weights[shown][..., None] * corner_normals).sum(1), dim=-1)
    light = F.normalize(normal.new_tensor(_LIGHT), dim=0)
    brightness = torch.zeros(index.shape, device=px.device)
    brightness[shown] = 0.25 + 0.75 * (normal @ light).clamp(min=0)
    return shown, brightness


def _dots(px: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Every vertex as a disc, nearer ones brighter."""
    count, vertices, _ = px.shape
    x, y, z = px.unbind(-1)
    extent = torch.maximum(x.amax() - x.amin(), y.amax() - y.amin())
    radius = max(1, round(float(extent) / 3 / vertices**0.5))
    step = torch.arange(-radius, radius + 1, device=px.device)
    disc = torch.cartesian_prod(step, step)
    disc = disc[disc.square().sum(1) <= radius * radius]
    buffer = z_buffer(count * height * width, px.device)
    near, far = z.amin(1, keepdim=True), z.amax(1, keepdim=True)
    brightness = ((1 - (z - near) / (far - near).clamp(min=1)) * 0.8 + 0.2).flatten()
    limit = px.new_tensor([width, height])
    for dot in torch.arange(count * vertices, device=px.device).split(max(1, _PAIRS // len(disc))):
        point = px.flatten(0, 1)[dot, None, :2].round() + disc
        inside = ((point >= 0) & (point < limit)).all(-1)
        pixel = point[..., 1] * width + point[..., 0]
        pixel = (pixel.long() + (dot // vertices * height * width)[:, None])[inside]
        repeated = dot[:, None].expand(-1, len(disc))[inside]
        buffer.add(pixel, z.flatten()[repeated], repeated)
    index = buffer.index.reshape(count, height, width)
    return index >= 0, brightness[index.clamp(min=0)]
