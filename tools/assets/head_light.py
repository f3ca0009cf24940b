"""How much of the sky each vertex of the head sees, for soft shadows without shadow rays. Used by `build_head` only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.reconstruction.rasteriser import rasterise
from fantasyid_core.reconstruction.render import normals
from fantasyid_lab.people.light import harmonics

DIRECTIONS, SIZE = 300, 448
_LIFT = 0.002  # m off the surface, so that a vertex is not hidden by its own triangles


def openness(vertices: Tensor, faces: Tensor) -> Tensor:
    """(V, 10) of a mesh (V, 3), m: the share of light from all around that reaches a vertex, 0…1 (ambient occlusion),
    and nine coefficients of spherical harmonics for whether light from a direction does.
    """
    normal = normals(vertices, faces)
    lifted = vertices + _LIFT * normal
    index = torch.arange(DIRECTIONS) + 0.5
    height, turn = 1 - 2 * index / DIRECTIONS, index * math.pi * (1 + math.sqrt(5))
    width = (1 - height.square()).sqrt()
    directions = torch.stack([width * turn.cos(), height, width * turn.sin()], 1)
    visibility = torch.stack([_lit(lifted, vertices, faces, direction) for direction in directions], 1)

    weight = (normal @ directions.T).clamp(min=0.02)
    ambient = (weight * visibility).sum(1) / weight.sum(1)
    basis = harmonics(directions)
    normal_equations = torch.einsum("vd,di,dj->vij", weight, basis, basis) + 1e-3 * torch.eye(9)
    coefficients = torch.linalg.solve(normal_equations, torch.einsum("vd,di->vi", weight * visibility, basis))
    return torch.cat([ambient[:, None], coefficients], 1)


def _lit(points: Tensor, vertices: Tensor, faces: Tensor, direction: Tensor) -> Tensor:
    """(V,) 0 or 1: whether points see a far light in a direction, past a mesh."""
    side = F.normalize(torch.linalg.cross(direction, direction.new_tensor([0.3, 0.9, 0.31])), dim=0)
    view = torch.stack([side, torch.linalg.cross(direction, side), -direction])
    scale = 0.95 * SIZE / (vertices.amax(0) - vertices.amin(0)).norm()

    def project(positions: Tensor) -> Tensor:
        return (positions - vertices.mean(0)) @ view.T * scale + positions.new_tensor([SIZE / 2, SIZE / 2, 0])

    mesh, looked = project(vertices), project(points)
    index, weights = rasterise(mesh, faces, SIZE, SIZE)
    depth = torch.where(index >= 0, (mesh[faces[index.clamp(min=0)], 2] * weights).sum(-1), torch.inf)
    x, y = looked[:, :2].round().long().clamp(0, SIZE - 1).unbind(1)
    return (looked[:, 2] <= depth[y, x] + 0.5).float()
