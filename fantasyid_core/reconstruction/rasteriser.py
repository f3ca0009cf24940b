"""A small z-buffer rasteriser in PyTorch: batches of meshes to pixels, vectorised over everything, on any device.

Triangles are cut into the rows of pixels they cross, rows into pixels, and the nearest of all pixels wins in one
reduction. An edge's crossing with a row is computed from the upper end whichever triangle asks, so neighbours agree to
the bit and closed meshes have no seams.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import MeshError

# Triangles, rows or pixels looked at in one go; bounds the memory at about 100 bytes times that.
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24, "mps": 1 << 21}
_EMPTY = torch.iinfo(torch.int64).max
_NONE = torch.iinfo(torch.int32).max


def rasterise(
    vertices_px: Tensor, faces: Tensor, height: int, width: int, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which triangle each pixel shows, and where in it.

    Args:
        vertices_px: (V, 3) or (B, V, 3) float; x to the right and y down in px, integers are pixel centres; z grows
            away from the viewer and must be linear in the picture (orthographic depth, or −1 / distance).
        faces: (F, 3) integer vertex indices, the same for the whole batch; both sides are drawn. Triangles that are
            degenerate, not finite or outside the picture are left out.
        keep: (F,) or (B, F) bool, the triangles to draw; all if None.

    Returns:
        index (height, width) or (B, height, width) int64, the nearest triangle (of equally near ones the first), −1
        where there is none; barycentric (…, height, width, 3) float32, weights of its three corners, 0 where there is
        none. Weights are linear in the picture, see `perspective_correct`.

    Raises:
        MeshError: wrong shapes or indices outside the vertices.
    """
    check(vertices_px, faces)
    batch = vertices_px if vertices_px.ndim == 3 else vertices_px[None]
    index = visible(batch, faces, height, width, keep)
    shown = (index.flatten() >= 0).nonzero()[:, 0]
    weights = torch.zeros(index.numel(), 3, device=index.device)
    weights[shown] = barycentric(batch, faces, index, shown)
    weights = weights.reshape(*index.shape, 3)
    return (index, weights) if vertices_px.ndim == 3 else (index[0], weights[0])


def visible(vertices_px: Tensor, faces: Tensor, height: int, width: int, keep: Tensor | None = None) -> Tensor:
    """`rasterise`'s index (B, height, width) alone, for vertices (B, V, 3); indices are not checked."""
    vertices = vertices_px.float()
    count, device = len(vertices), vertices.device
    buffer = z_buffer(count * height * width, device)
    chunk = _CHUNK.get(device.type, 1 << 20)
    meshes = max(1, chunk // max(1, len(faces)))
    for start in range(0, count, meshes):
        corners = vertices[start : start + meshes, faces]
        drawn = _crosses_pixels(corners, height, width)
        if keep is not None:
            drawn &= keep if keep.ndim == 1 else keep[start : start + meshes]
        frame, triangle = drawn.nonzero(as_tuple=True)
        edges, first, rows = _edges(corners[frame, triangle], height)
        origin = (frame + start) * height
        for part, total in _chunks(rows, chunk):
            row, y = _expand(part, rows, total)
            y = y + first[row]
            column, length, depth, slope = _spans(edges.index_select(2, row), y.float(), width)
            pixel = (origin[row] + y) * width + column
            shown = triangle[row]
            for piece, pixels in _chunks(length, chunk):
                span, x = _expand(piece, length, pixels)
                buffer.add(pixel[span] + x, depth[span] + slope[span] * x, shown[span])
    return buffer.index.reshape(count, height, width)


def barycentric(vertices_px: Tensor, faces: Tensor, index: Tensor, shown: Tensor) -> Tensor:
    """Weights (N, 3) float32 of the corners at the pixels `shown` (N,), which number `index` (B, H, W) row by row."""
    _, height, width = index.shape
    frame, y, x = shown // (height * width), shown // width % height, shown % width
    corner = faces.index_select(0, index.flatten()[shown]) + (frame * vertices_px.shape[1])[:, None]
    corners = vertices_px.float().flatten(0, 1).index_select(0, corner.flatten()).reshape(-1, 3, 3)[..., :2]
    a, b, c = (corners - torch.stack([x, y], 1)[:, None]).unbind(1)
    parts = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], 1)
    parts = (parts * parts.sum(1, keepdim=True).sign()).clamp(min=0)  # rounding must not leave the triangle
    return parts / parts.sum(1, keepdim=True).clamp(min=1e-30)


def perspective_correct(barycentric: Tensor, corner_distance: Tensor) -> Tensor:
    """Weights that are linear in the picture → linear on the surface, as attributes are.

    Args:
        barycentric: (…, 3).
        corner_distance: (…, 3) > 0, the corners' distances along the viewing direction.
    """
    weights = barycentric / corner_distance
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def check(vertices: Tensor, faces: Tensor | None) -> None:
    """Raise `MeshError` unless vertices (V, 3) or (B, V, 3) and faces (F, 3) fit together."""
    if vertices.ndim not in (2, 3) or vertices.shape[-1] != 3 or 0 in vertices.shape:
        raise MeshError(
            f"The vertices have shape {tuple(vertices.shape)}; expected (vertices, 3), at least one. "
            "Export the mesh again."
        )
    if faces is None:
        return
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.is_floating_point():
        raise MeshError(
            f"The faces have shape {tuple(faces.shape)} and {faces.dtype}; expected (faces, 3) integers. "
            "Export the mesh again, cut into triangles."
        )
    number = vertices.shape[-2]
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= number):
        raise MeshError(
            f"The faces use vertices {int(faces.min())} to {int(faces.max())}, but there are {number} vertices. "
            "Export the mesh again."
        )


def z_buffer(pixels: int, device: torch.device) -> "PackedZBuffer | PairZBuffer":
    """A z-buffer with what the device can do: MPS cannot reduce int64."""
    return (PairZBuffer if torch.device(device).type == "mps" else PackedZBuffer)(pixels, device)


class PackedZBuffer:
    """For each pixel the nearest depth so far and the index of what lies there, in one integer: one reduction."""

    def __init__(self, pixels: int, device: torch.device):
        self._nearest = torch.full((pixels,), _EMPTY, dtype=torch.int64, device=device)

    def add(self, pixel: Tensor, depth: Tensor, index: Tensor) -> None:
        """Fragments: pixel numbers int64, depths float32 and indices int64 < 2³¹, (N,) each."""
        bits = (depth + 0.0).view(torch.int32)  # + 0: there is one zero
        ordered = torch.where(bits < 0, bits ^ _NONE, bits).long()
        self._nearest.scatter_reduce_(0, pixel, (ordered << 32) | index, "amin")

    @property
    def index(self) -> Tensor:
        """(pixels,) int64, of equally near ones the smallest; −1: nothing."""
        return torch.where(self._nearest == _EMPTY, -1, self._nearest & 0xFFFFFFFF)


class PairZBuffer:
    """The same with a buffer for depths and one for indices: two reductions, every device."""

    def __init__(self, pixels: int, device: torch.device):
        self._depth = torch.full((pixels,), torch.inf, device=device)
        self._index = torch.full((pixels,), _NONE, dtype=torch.int32, device=device)

    def add(self, pixel: Tensor, depth: Tensor, index: Tensor) -> None:
        """As `PackedZBuffer.add`."""
        before = self._depth
        self._depth = before.scatter_reduce(0, pixel, depth, "amin")
        self._index = torch.where(self._depth < before, _NONE, self._index)
        behind = depth > self._depth[pixel]
        self._index.scatter_reduce_(0, pixel, torch.where(behind, _NONE, index.int()), "amin")

    @property
    def index(self) -> Tensor:
        """As `PackedZBuffer.index`."""
        return torch.where(self._index == _NONE, -1, self._index).long()


def _crosses_pixels(corners: Tensor, height: int, width: int) -> Tensor:
    """(…,) bool: the triangles (…, 3, 3) that are finite, not degenerate and may cover a pixel of the picture."""
    a, b, c = corners.unbind(-2)
    low, high = a.minimum(b).minimum(c), a.maximum(b).maximum(c)
    limit = low.new_tensor([width - 1, height - 1])
    covers = low[..., :2].ceil().clamp(min=0) <= high[..., :2].floor().minimum(limit)
    area = _cross((b - a)[..., :2], (c - a)[..., :2])
    # A difference is finite only if all three coordinates are.
    return covers.all(-1) & (high - low).isfinite().all(-1) & (area != 0) & area.isfinite()


def _edges(corners: Tensor, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """Triangles (T, 3, 3) → edges (6, 3, T): upper end x, y, z, lower end's y, and x and z per row; first row (T,) and
    number of rows (T,) int64 that each triangle crosses.
    """
    start = corners.permute(2, 1, 0).contiguous()
    end = start.roll(-1, 1)
    down = start[1] <= end[1]
    upper, lower = torch.where(down, start, end), torch.where(down, end, start)
    drop = lower[1] - upper[1]
    slopes = (lower - upper) / drop  # NaN or infinite for a level edge, which never decides a row
    y = torch.where(drop > 0, upper[1], torch.inf)
    first = start[1].amin(0).ceil().clamp(min=0)
    rows = start[1].amax(0).floor().clamp(max=height - 1) - first + 1
    return torch.stack([upper[0], y, upper[2], lower[1], slopes[0], slopes[2]]), first.long(), rows.clamp(min=0).long()


def _spans(edges: Tensor, y: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where rows y (N,) run through triangles, given their edges (6, 3, N): first column and number of columns int64,
    depth at the first column and its slope.
    """
    upper_x, upper_y, upper_z, lower_y, slope_x, slope_z = edges
    below = y - upper_y
    crossed = (below >= 0) & (y <= lower_y)
    x, z = upper_x + slope_x * below, upper_z + slope_z * below
    left, right = torch.where(crossed, x, torch.inf), torch.where(crossed, x, -torch.inf)
    (left, i), (right, j) = left.min(0), right.max(0)
    left_z, right_z = z.gather(0, i[None])[0], z.gather(0, j[None])[0]
    slope = (right_z - left_z) / (right - left).clamp(min=1e-6)
    first = left.ceil().clamp(min=0)
    length = (right.floor().clamp(max=width - 1) - first + 1).clamp(min=0).nan_to_num(0, 0, 0)
    return first.clamp(max=width).long(), length.long(), left_z + slope * (first - left), slope


def _expand(part: slice, counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Repeat each element of `part` as often as `counts` says: its number, and the how-manieth repetition; (total,)."""
    count = counts[part]
    number = torch.arange(part.start, part.start + len(count), device=counts.device)
    element = number.repeat_interleave(count, output_size=total)
    before = count.cumsum(0) - count
    return element, torch.arange(total, device=counts.device) - before[element - part.start]


def _chunks(counts: Tensor, limit: int) -> Iterator[tuple[slice, int]]:
    """Consecutive parts of (N,) counts that add up to about `limit` at most (or are one element), and their sums."""
    if not len(counts):
        return
    ends = counts.cumsum(0)
    total = int(ends[-1])
    if total <= limit:
        if total:
            yield slice(0, len(counts)), total
        return
    lengths = torch.unique_consecutive((ends - counts) // limit, return_counts=True)[1]
    stops = lengths.cumsum(0)
    sums = ends[stops - 1].tolist()
    start = before = 0
    for stop, end in zip(stops.tolist(), sums, strict=True):
        if end > before:
            yield slice(start, stop), end - before
        start, before = stop, end


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
