"""What every stage may ask of a triangle mesh: vertices (V, 3), faces (F, 3)."""

import torch
from torch import Tensor

from .errors import MeshError


def check_mesh(vertices: Tensor, faces: Tensor | None, name: str = "The mesh") -> None:
    """Raise `MeshError` unless `vertices` is (V, 3) and finite and `faces` (F, 3) numbers them."""
    if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) == 0:
        raise MeshError(
            f"{name} has vertices of shape {tuple(vertices.shape)}; expected (vertices, 3), at least one. "
            "Export the mesh again."
        )
    if not torch.isfinite(vertices).all():
        raise MeshError(f"{name} has vertices that are not finite (NaN or infinity): export it again.")
    if faces is None:
        return
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise MeshError(
            f"{name} has faces of shape {tuple(faces.shape)}; expected triangles, (faces, 3). "
            "Export the mesh again, cut into triangles."
        )
    if faces.is_floating_point():
        raise MeshError(f"{name} has faces of {faces.dtype}; expected whole numbers. Export the mesh again.")
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(vertices)):
        raise MeshError(
            f"{name} has {len(vertices)} vertices, but its faces number them from {int(faces.min())} to "
            f"{int(faces.max())}: it is damaged, export it again."
        )
