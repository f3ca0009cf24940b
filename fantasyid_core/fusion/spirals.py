"""Vertex spirals in the order in which OpenMesh walks a mesh, without OpenMesh.

A spiral lists a vertex, its neighbours and their neighbours, ring by ring (SpiralNet++, Gong et al. 2019). The linear
layers of the published weights were trained on one order of them: the order of OpenMesh's vertex circulator, which
depends on the half-edge that each vertex happens to store, and so on the order in which the faces were added.
Half-edges come in pairs (2k, 2k + 1) of opposite direction.
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import MeshError
from ..geometry import check_mesh

NONE = -1
# Bounds on what a damaged or hostile file can cost; the largest face meshes in use have 30,000 vertices.
MAX_VERTICES = 50_000
MAX_NEIGHBOURS = 1_000


def spirals(vertices: Tensor, faces: Tensor, length: int = 9) -> Tensor:
    """Spirals of a triangle mesh.

    Args:
        vertices: (V, 3), used where the rings run out (then the nearest `length` vertices make the spiral).
        faces: (F, 3) vertex numbers.
        length: vertices per spiral, the centre included.

    Returns:
        (V, length) int64.

    Raises:
        MeshError: a vertex number is out of range, a coordinate is not finite, the faces are not a manifold, or the
            mesh has fewer than `length` vertices.
    """
    check_mesh(vertices, faces)
    if not length <= len(vertices) <= MAX_VERTICES:
        raise MeshError(
            f"Spirals of {length} need {length} to {MAX_VERTICES:,} vertices; the mesh has {len(vertices):,}. "
            "Use a mesh of at least that size."
        )
    rings = _HalfEdges(len(vertices), faces.tolist()).rings()
    if max(map(len, rings)) > MAX_NEIGHBOURS:
        raise MeshError(f"A vertex of the mesh has more than {MAX_NEIGHBOURS} neighbours: use a regular face mesh.")
    points = vertices.double().cpu().numpy()
    rows = [_spiral(rings, vertex, length) or _nearest(points, vertex, length) for vertex in range(len(points))]
    return torch.tensor(rows)


def _spiral(rings: list[list[int]], vertex: int, length: int) -> list[int] | None:
    """The first `length` vertices around `vertex`, or `None` where the rings run out before."""
    spiral, ring = [vertex, *rings[vertex]], rings[vertex]
    following = _next_ring(rings, ring, spiral)
    while following and len(spiral) + len(following) < length:
        spiral, ring = spiral + following, following
        following = _next_ring(rings, ring, spiral)
    return (spiral + following)[:length] if following else None


def _next_ring(rings: list[list[int]], ring: list[int], spiral: list[int]) -> list[int]:
    """New neighbours of `ring`: of each of its vertices those after the first one inside it, then those before."""
    members, known, found = set(ring), set(spiral), []
    for vertex in ring:
        around = rings[vertex]
        first = next((i for i, other in enumerate(around) if other in members), len(around))
        for other in around[first + 1 :] + around[:first]:
            if other not in known:
                known.add(other)
                found.append(other)
    return found


def _nearest(points: np.ndarray, vertex: int, length: int) -> list[int]:
    distance = ((points - points[vertex]) ** 2).sum(1)
    return np.argsort(distance, kind="stable")[:length].tolist()


class _HalfEdges:
    """The half-edge structure that OpenMesh builds when faces are added one after the other."""

    def __init__(self, vertex_count: int, faces: list[list[int]]):
        self.outgoing = [NONE] * vertex_count  # the half-edge each vertex stores; on the border if the vertex is
        self.target: list[int] = []
        self.next: list[int] = []
        self.previous: list[int] = []
        self.has_face: list[bool] = []
        self.edge: dict[tuple[int, int], int] = {}
        for number, face in enumerate(faces):
            try:
                self._add(face)
            except _NotManifold:
                raise MeshError(
                    f"Face {number} {face} does not fit the faces before it: spirals need a manifold mesh "
                    "(no edge with three faces, no vertex where two surfaces only touch, all faces wound alike). "
                    "Repair it in a 3-D program."
                ) from None

    def rings(self) -> list[list[int]]:
        """The neighbours of every vertex, from its stored half-edge on, clockwise."""
        return [[self.target[edge] for edge in self._around(vertex)] for vertex in range(len(self.outgoing))]

    def _around(self, vertex: int) -> list[int]:
        start = edge = self.outgoing[vertex]
        edges: list[int] = []
        while edge != NONE and (not edges or edge != start):
            edges.append(edge)
            edge = self.next[edge ^ 1]
        return edges

    def _add(self, face: list[int]) -> None:
        corners = [(face[i], face[(i + 1) % 3]) for i in range(3)]
        edges = [self.edge.get(corner, NONE) for corner in corners]
        is_new = [edge == NONE for edge in edges]
        if len(set(face)) < 3 or any(edge != NONE and self.has_face[edge] for edge in edges):
            raise _NotManifold
        if any(self.outgoing[vertex] != NONE and self.has_face[self.outgoing[vertex]] for vertex in face):
            raise _NotManifold
        for i in range(3):
            inner, following = edges[i], edges[(i + 1) % 3]
            if NONE not in (inner, following) and self.next[inner] != following:
                self._relink(inner, following)
        for i in range(3):
            if is_new[i]:
                edges[i] = self._new_edge(*corners[i])
        links, adjust = [], []
        for i in range(3):
            following = (i + 1) % 3
            links += self._links(corners[i][1], edges[i], edges[following], is_new[i], is_new[following])
            if not is_new[i] and not is_new[following] and self.outgoing[corners[i][1]] == edges[following]:
                adjust.append(corners[i][1])
            self.has_face[edges[i]] = True
        for edge, following in links:
            self._link(edge, following)
        for vertex in adjust:
            self._store_border(vertex)

    def _links(self, vertex: int, inner: int, following: int, inner_new: bool, following_new: bool) -> list[tuple]:
        """Links to set around the corner `vertex` between the half-edges `inner` and `following` of a new face."""
        if not inner_new and not following_new:
            return []
        outer, outer_following = following ^ 1, inner ^ 1
        if inner_new and following_new:
            stored = self.outgoing[vertex]
            if stored == NONE:
                self.outgoing[vertex] = outer_following
                links = [(outer, outer_following)]
            else:
                links = [(self.previous[stored], outer_following), (outer, stored)]
        elif inner_new:
            links = [(self.previous[following], outer_following)]
            self.outgoing[vertex] = outer_following
        else:
            links = [(outer, self.next[inner])]
            self.outgoing[vertex] = self.next[inner]
        return [*links, (inner, following)]

    def _relink(self, inner: int, following: int) -> None:
        """Move the patch of faces between two border half-edges to the next gap, so that they follow one another."""
        edge = following ^ 1
        while True:
            edge = self.next[edge] ^ 1
            if not self.has_face[edge]:
                break
        if edge == inner:
            raise _NotManifold
        patch_start, patch_end, after = self.next[inner], self.previous[following], self.next[edge]
        self._link(edge, patch_start)
        self._link(patch_end, after)
        self._link(inner, following)

    def _new_edge(self, start: int, end: int) -> int:
        edge = len(self.target)
        self.edge[start, end], self.edge[end, start] = edge, edge + 1
        self.target += [end, start]
        self.next += [NONE, NONE]
        self.previous += [NONE, NONE]
        self.has_face += [False, False]
        return edge

    def _link(self, edge: int, following: int) -> None:
        self.next[edge], self.previous[following] = following, edge

    def _store_border(self, vertex: int) -> None:
        border = next((edge for edge in self._around(vertex) if not self.has_face[edge]), None)
        if border is not None:
            self.outgoing[vertex] = border


class _NotManifold(Exception):
    pass
