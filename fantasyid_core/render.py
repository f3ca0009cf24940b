"""Shaded previews of meshes and clouds of points, in PyTorch on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MeshError
from .rasteriser import check, rasterise, z_buffer

# Pixels of dots looked at in one go; bounds the memory at about 100 MB.
_PAIRS = 1 << 20
_LIGHT = (0.35, 0.45, 0.82)
_COLOUR = (0.80, 0.76, 0.72)
_BACKGROUND = 0.12


def shade(vertices: Tensor, faces: Tensor | None, size: int = 512) -> Tensor:
    """Frontal orthographic preview of a mesh, lit from the viewer's upper right; a cloud of dots without `faces`.

    Args:
        vertices: (V, 3) float, y up, z towards the viewer (FLAME's space, any unit: the mesh is fitted to the picture).
        faces: (F, 3) int64 or None.

    Returns:
        (size, size, 3) float32 0…1 on the mesh's device.

    Raises:
        MeshError: wrong shapes, not finite, or indices outside the vertices.
    """
    check(vertices, faces)
    if vertices.ndim != 2:
        raise MeshError(f"The vertices have shape {tuple(vertices.shape)}; expected one mesh, (vertices, 3).")
    vertices = vertices.float()
    if not vertices.isfinite().all():
        raise MeshError("The mesh has NaN or infinite vertices; compute it again or use another file.")
    low, high = vertices.amin(0), vertices.amax(0)
    scale = 0.9 * size / (high - low)[:2].amax().clamp(min=1e-12)
    centred = (vertices - (low + high) / 2) * scale
    px = centred * centred.new_tensor([1, -1, -1]) + centred.new_tensor([size / 2 - 0.5, size / 2 - 0.5, 0])
    index, brightness = _dots(px, size) if faces is None else _surface(vertices, px, faces, size)
    colour = brightness[..., None] * brightness.new_tensor(_COLOUR)
    return torch.where((index >= 0)[..., None], colour, _BACKGROUND).clamp(0, 1)


def normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit vertex normals (V, 3), the mean of the adjoining triangles' by area."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add(0, faces.flatten(), normal.repeat_interleave(3, 0))
    return F.normalize(total, dim=1, eps=1e-20)


def _surface(vertices: Tensor, px: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index, weights = rasterise(px, faces, size, size)
    corner_normals = normals(vertices, faces)[faces[index.clamp(min=0)]]
    normal = F.normalize((weights[..., None] * corner_normals).sum(2), dim=-1)
    light = F.normalize(normal.new_tensor(_LIGHT), dim=0)
    return index, 0.25 + 0.75 * (normal @ light).clamp(min=0)


def _dots(px: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Every vertex as a disc, nearer ones brighter."""
    radius = max(1, round(0.3 * size / len(px) ** 0.5))
    step = torch.arange(-radius, radius + 1, device=px.device)
    disc = torch.cartesian_prod(step, step)
    disc = disc[disc.square().sum(1) <= radius * radius]
    buffer = z_buffer(size * size, px.device)
    brightness = (1 - (px[:, 2] - px[:, 2].amin()) / (px[:, 2].amax() - px[:, 2].amin()).clamp(min=1e-12)) * 0.8 + 0.2
    for vertex in torch.arange(len(px), device=px.device).split(max(1, _PAIRS // len(disc))):
        point = (px[vertex, None, :2].round().long() + disc).clamp(0, size - 1)
        pixel = (point[..., 1] * size + point[..., 0]).flatten()
        repeated = vertex.repeat_interleave(len(disc))
        buffer.add(pixel, px[repeated, 2], repeated)
    index = buffer.index.reshape(size, size)
    return index, brightness[index.clamp(min=0)]
