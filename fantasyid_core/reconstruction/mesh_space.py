"""Is a mesh from a file in the face model's space? Units and axes of other programs are found by the template.

Where its origin is cannot be found: that of the published `transform.pkl` is 1.5 m from FLAME's.

A similarity (rotation, scale, shift) that takes the template to the mesh leaves a face a few millimetres off, whatever
its units, axes and pose; a mesh whose vertices are numbered otherwise, or are of another thing, is left centimetres
off.
"""

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import MeshError
from .face_mesh import FaceMesh

SAME_TOPOLOGY = 0.03  # m rms that may be left: faces with expressions leave 0.005 to 0.02, other orders 0.07 and more
UNITS = {"metres": 1.0, "millimetres": 1e-3, "centimetres": 1e-2, "inches": 0.0254}  # → metres
SAME_SIZE = 1.4  # largest ratio of a head's size to the template's
SAME_AXES = 40.0  # degrees from an exchange of axes; what is turned otherwise is a head's pose


def into_space(mesh: FaceMesh, template: Tensor) -> tuple[FaceMesh, str]:
    """The mesh in the space of `template` (V, 3), metres, and in words what was wrong ("" where nothing was).

    A mesh that was reconstructed here, or has another number of vertices, is returned as it is.

    Raises:
        MeshError: its vertices are no face in the order of the template's.
    """
    if mesh.shape_code is not None or mesh.vertices.shape != template.shape:
        return mesh, ""
    vertices, target = mesh.vertices.double().cpu(), template.double().cpu()
    rotation, scale, residual = _similarity(target, vertices)
    if not residual < SAME_TOPOLOGY:
        raise MeshError(
            f"The mesh has the right number of vertices ({len(vertices)}), but they are not those of the model's face: "
            f"moved, turned and scaled onto it they are {residual * 1000:.0f} mm off on average, a face about 10. Use "
            "the mesh as the face model made it (FLAME's own vertex order), not one that was remeshed or sorted anew."
        )
    differences = []
    unit = next((name for name, metres in UNITS.items() if 1 / SAME_SIZE < scale * metres < SAME_SIZE), None)
    if unit != "metres":
        vertices = vertices * (UNITS[unit] if unit else 1 / scale)
        differences.append(f"it is in {unit}" if unit else f"it is {scale:.3g} times as large as a head")
    if (axes := _exchange(rotation)) is not None:
        vertices = vertices @ axes
        differences.append("its axes are those of another program, not y up and z out of the face")
    if not differences:
        return mesh, ""
    message = f"The mesh is not in the face model's space: {' and '.join(differences)}. It was set right."
    return replace(mesh, vertices=vertices.to(mesh.vertices)), message


def _similarity(source: Tensor, target: Tensor) -> tuple[Tensor, float, float]:
    """The best target ≈ scale · source · rotation + shift (Procrustes).

    Returns:
        rotation (3, 3), which may mirror; scale; and what is left, rms in the source's units, 0 … the source's spread.
    """
    source, target = source - source.mean(0), target - target.mean(0)
    sizes = source.norm(), target.norm()
    if not sizes[1] > 0:
        return torch.eye(3, dtype=source.dtype), 0.0, torch.inf
    u, values, v = torch.linalg.svd(source.T @ target)
    correlation = float(values.sum() / (sizes[0] * sizes[1]))
    residual = float(sizes[0]) / len(source) ** 0.5 * max(0.0, 1 - correlation**2) ** 0.5
    return u @ v, float(sizes[1] / sizes[0]), residual


def _exchange(rotation: Tensor) -> Tensor | None:
    """The exchange of axes (3, 3), with their signs, that undoes a rotation; None where there is none to undo."""
    swaps = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            swap = torch.zeros(3, 3, dtype=rotation.dtype)
            swap[range(3), order] = torch.tensor(signs, dtype=rotation.dtype)
            swaps.append(swap)
    nearest = min(swaps, key=lambda swap: float((swap - rotation).square().sum()))
    if torch.equal(nearest, torch.eye(3, dtype=rotation.dtype)):
        return None
    # Of two rotations the sum of the squared differences is 8 sin² (angle / 2).
    angle = 2 * torch.asin(((nearest - rotation).square().sum() / 8).sqrt().clamp(max=1)).rad2deg()
    return nearest.T if angle < SAME_AXES else None
