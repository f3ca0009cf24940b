"""A small z-buffer rasteriser in PyTorch, vectorised over triangles, for previews of meshes. Runs on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MeshError

# (triangle, pixel) pairs looked at in one go; bounds the memory at about 100 MB.
_PAIRS = 1 << 20
_LIGHT = (0.35, 0.45, 0.82)
_COLOUR = (0.80, 0.76, 0.72)
_BACKGROUND = 0.12


def rasterise(vertices_px: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which triangle each pixel shows, and where in it.

    Args:
        vertices_px: (V, 3) float; x to the right and y down in px, integers are pixel centres; z grows away from the
            viewer (orthographic: depth is linear over a triangle).
        faces: (F, 3) int64 vertex indices; both sides are drawn. Triangles that are degenerate, not finite or outside
            the picture are left out.

    Returns:
        index (height, width) int64, the nearest triangle (of equally near ones the first), −1 where there is none;
        barycentric (height, width, 3) float32, weights of its three corners, 0 where there is none.

    Raises:
        MeshError: wrong shapes or indices outside the vertices.
    """
    _check(vertices_px, faces)
    corners = vertices_px.float()[faces]
    low, high = corners[..., :2].amin(1), corners[..., :2].amax(1)
    limit = low.new_tensor([width, height])
    first = low.ceil().clamp(min=0).minimum(limit)
    extent = (high.floor().minimum(limit - 1) - first + 1).clamp(min=0).nan_to_num(0)
    usable = corners.isfinite().all(-1).all(-1) & (_area(corners[:, 0], corners[:, 1], corners[:, 2]) != 0)
    pixels = extent.long().prod(1) * usable

    buffer = _ZBuffer(height * width, corners.device)
    drawn = pixels.nonzero()[:, 0]
    for chunk in _chunks(drawn, pixels[drawn]):
        count = pixels[chunk]
        total = int(count.sum())
        triangle = chunk.repeat_interleave(count, output_size=total)
        start = (count.cumsum(0) - count).repeat_interleave(count, output_size=total)
        offset = torch.arange(total, device=chunk.device) - start
        columns = extent[triangle, 0].long()
        row, column = offset // columns, offset % columns
        point = torch.stack([column, row], 1) + first[triangle]
        weights = _barycentric(point, corners[triangle])
        inside = (weights >= -1e-6).all(1)  # the margin closes seams between neighbours
        depth = (weights * corners[triangle][..., 2]).sum(1)
        pixel = (point[:, 1] * width + point[:, 0]).long()
        buffer.add(pixel[inside], depth[inside], triangle[inside])

    index = buffer.index.reshape(height, width)
    y, x = torch.meshgrid(
        torch.arange(height, device=index.device), torch.arange(width, device=index.device), indexing="ij"
    )
    shown = index >= 0
    weights = torch.zeros(height, width, 3, device=index.device)
    weights[shown] = _barycentric(torch.stack([x[shown], y[shown]], 1).float(), corners[index[shown]])
    return index, weights


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
    _check(vertices, faces)
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
    buffer = _ZBuffer(size * size, px.device)
    brightness = (1 - (px[:, 2] - px[:, 2].amin()) / (px[:, 2].amax() - px[:, 2].amin()).clamp(min=1e-12)) * 0.8 + 0.2
    for vertex in torch.arange(len(px), device=px.device).split(max(1, _PAIRS // len(disc))):
        point = (px[vertex, None, :2].round().long() + disc).clamp(0, size - 1)
        pixel = (point[..., 1] * size + point[..., 0]).flatten()
        repeated = vertex.repeat_interleave(len(disc))
        buffer.add(pixel, px[repeated, 2], repeated)
    index = buffer.index.reshape(size, size)
    return index, brightness[index.clamp(min=0)]


class _ZBuffer:
    """For each pixel the nearest depth so far and the index of what lies there (−1: nothing)."""

    def __init__(self, pixels: int, device: torch.device):
        self.depth = torch.full((pixels,), torch.inf, device=device)
        self.index = torch.full((pixels,), -1, dtype=torch.int64, device=device)

    def add(self, pixel: Tensor, depth: Tensor, index: Tensor) -> None:
        """Fragments: pixel numbers, depths and indices, (N,) each; indices ascend from call to call."""
        before = self.depth
        self.depth = before.scatter_reduce(0, pixel, depth, "amin")
        # int32 because MPS cannot reduce int64
        none = torch.iinfo(torch.int32).max
        front = depth == self.depth[pixel]
        winner = torch.full_like(self.index, none, dtype=torch.int32)
        winner = winner.scatter_reduce(0, pixel[front], index[front].int(), "amin").long()
        self.index = torch.where(self.depth < before, winner, self.index)


def _chunks(triangles: Tensor, pixels: Tensor) -> list[Tensor]:
    """Split triangles, in order, so that each part covers at most about `_PAIRS` pixels (or is one triangle)."""
    if not len(triangles):
        return []
    part = (pixels.cumsum(0) - pixels) // _PAIRS
    return list(triangles.split(torch.unique_consecutive(part, return_counts=True)[1].tolist()))


def _area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Twice the signed area of triangles in the image plane, corners (…, ≥ 2)."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _barycentric(point: Tensor, corners: Tensor) -> Tensor:
    """Weights (N, 3) of the corners (N, 3, ≥ 2) at points (N, 2)."""
    a, b, c = corners[..., :2].unbind(1)
    parts = torch.stack([_area(point, b, c), _area(point, c, a), _area(point, a, b)], 1)
    return parts / _area(a, b, c)[:, None]


def _check(vertices: Tensor, faces: Tensor | None) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not len(vertices):
        raise MeshError(f"The vertices have shape {tuple(vertices.shape)}; expected (vertices, 3), at least one.")
    if faces is None:
        return
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise MeshError(f"The faces have shape {tuple(faces.shape)} and {faces.dtype}; expected (faces, 3) integers.")
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(vertices)):
        raise MeshError(
            f"The faces use vertices {int(faces.min())} to {int(faces.max())}, but there are {len(vertices)} vertices."
        )
