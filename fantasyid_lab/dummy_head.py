"""The stand-in's head: a mesh hierarchy that needs nobody's licence."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fantasyid_core.fusion.mesh_hierarchy import Topology, Transform
from fantasyid_core.fusion.spirals import spirals


def head() -> Topology:
    """An egg with a nose, in metres, as a hierarchy of subdivided icosahedra: 642, 162, 42 and 12 vertices."""
    vertices, faces = _icosahedron()
    levels = [(vertices, faces)]
    ups = []
    for _ in range(3):
        vertices, faces, up = _subdivide(*levels[0])
        levels.insert(0, (vertices, faces))
        ups.insert(0, up)
    shaped = [_shape(v) for v, _ in levels]
    downs = []
    for (fine, _), (coarse, _) in pairwise(levels):
        index = torch.arange(len(coarse))  # subdivision keeps the coarse vertices in front
        downs.append((index, index.clone(), torch.ones(len(coarse)), (len(coarse), len(fine))))
    lists = tuple(spirals(shaped[i], levels[i][1], 9) for i in range(2))
    counts = tuple(len(v) for v in shaped)
    return Topology(counts, shaped[0], tuple(f for _, f in levels), tuple(downs), tuple(ups), lists)


def _icosahedron() -> tuple[Tensor, Tensor]:
    g = (1 + 5**0.5) / 2
    vertices = [(0, s, t * g) for s in (1, -1) for t in (1, -1)]
    vertices = [tuple(v[(i + shift) % 3] for i in range(3)) for shift in range(3) for v in vertices]
    points = torch.tensor(vertices, dtype=torch.float32)
    near = torch.cdist(points, points) < 2.1  # edges have length 2
    faces = [
        (a, b, c)
        for a in range(12)
        for b in range(a + 1, 12)
        for c in range(b + 1, 12)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    outward = [
        (a, b, c) if torch.linalg.det(torch.stack([points[a], points[b], points[c]])) > 0 else (a, c, b)
        for a, b, c in faces
    ]
    return normalize(points), torch.tensor(outward)


def _subdivide(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Transform]:
    """Every triangle into four: finer vertices on the sphere, faces, and the transform that interpolates to them."""
    middle: dict[tuple[int, int], int] = {}
    finer = []
    for a, b, c in faces.tolist():
        ab, bc, ca = (
            middle.setdefault((min(e), max(e)), len(vertices) + len(middle)) for e in ((a, b), (b, c), (c, a))
        )
        finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    edges = torch.tensor(list(middle))
    points = torch.cat([vertices, normalize(vertices[edges].mean(1))])
    old = torch.arange(len(vertices))
    new = torch.arange(len(edges)) + len(vertices)
    rows, columns = torch.cat([old, new, new]), torch.cat([old, edges[:, 0], edges[:, 1]])
    values = torch.cat([torch.ones(len(old)), torch.full((2 * len(new),), 0.5)])
    return points, torch.tensor(finer), (rows, columns, values, (len(points), len(vertices)))


def _shape(sphere: Tensor) -> Tensor:
    """Unit sphere → head: 15 × 22 × 18 cm, face towards +z, with a nose."""
    nose = torch.exp(-((sphere[:, :2] / 0.22) ** 2).sum(1)) * (sphere[:, 2] > 0)
    head = sphere * torch.tensor([0.075, 0.11, 0.09])
    return head + nose[:, None] * torch.tensor([0.0, 0.0, 0.03])
