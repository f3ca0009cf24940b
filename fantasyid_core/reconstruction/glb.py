"""Binary glTF (`.glb`) out: one mesh with smooth normals, as 3D viewers and programs open it; still or moving.

What moves has a morph target for every way that is used, and two nodes: the outer turns about the neck, the inner holds
the mesh.
"""

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MeshError
from ..geometry import check_mesh
from .animation import Animation
from .mesh_files import write_bytes
from .render import normals

_FLOAT, _UINT = 5126, 5125  # glTF's numbers for types, uses and modes
_VERTICES, _INDICES = 34962, 34963
_POINTS, _TRIANGLES = 0, 4
_SKIN = [0.80, 0.76, 0.72, 1.0]


def write_glb(path: str | Path, vertices: Tensor, faces: Tensor | None = None) -> None:
    """Write a mesh; without faces, its points.

    Args:
        vertices: (V, 3) float, y up: glTF's space is FLAME's.
        faces: (F, 3) int64 or None.

    Raises:
        MeshError: not a mesh.
        SaveError: the disk refuses the file.
    """
    check_mesh(vertices, faces)
    arrays = _Arrays()
    document = _document([_primitive(arrays, vertices, faces)])
    write_bytes(Path(path), _container(*arrays.finish(document)))


def write_animated_glb(path: str | Path, animation: Animation) -> None:
    """Write a moving mesh: its neutral face, a morph target for every way that any frame uses, and the frames as keys.

    Raises:
        MeshError: not a mesh, no frames, or values that are not finite.
        SaveError: the disk refuses the file.
    """
    check_mesh(animation.neutral, animation.faces)
    weights, ways = animation.weights.detach().float().cpu(), animation.ways.detach().float().cpu()
    pose = animation.pose.detach().float().cpu()
    if not len(weights) or not all(bool(x.isfinite().all()) for x in (weights, ways, pose)):
        raise MeshError(
            "The animation has no frames, or values that are not finite: take a longer part of the performance, or "
            "capture the video again."
        )
    used = weights.abs().amax(0) > 0
    weights, ways = weights[:, used], ways[..., used]
    arrays = _Arrays()
    primitive = _primitive(arrays, animation.neutral, animation.faces)
    if ways.shape[2]:
        primitive["targets"] = [{"POSITION": arrays.add(way, target=_VERTICES, bounds=True)} for way in ways.unbind(-1)]
    document = _document([primitive])
    if "targets" in primitive:
        document["meshes"][0]["weights"] = weights[0].tolist()
    root = animation.root.detach().float().cpu().tolist()
    document["nodes"] = [{"translation": root, "children": [1]}, {"mesh": 0, "translation": [-x for x in root]}]
    document["animations"] = [_animation(arrays, weights, pose, animation.fps)]
    write_bytes(Path(path), _container(*arrays.finish(document)))


def _animation(arrays: "_Arrays", weights: Tensor, pose: Tensor, fps: float) -> dict:
    """Keys of the outer node's turn and of the inner one's morph weights."""
    times = arrays.add(torch.arange(len(pose)) / fps, kind="SCALAR", bounds=True)
    outputs = [("rotation", 0, arrays.add(_quaternions(pose), kind="VEC4"))]
    if weights.shape[1]:
        outputs.append(("weights", 1, arrays.add(weights.flatten(), kind="SCALAR")))
    return {
        "name": "performance",
        "samplers": [{"input": times, "output": output, "interpolation": "LINEAR"} for _, _, output in outputs],
        "channels": [
            {"sampler": i, "target": {"node": node, "path": path}} for i, (path, node, _) in enumerate(outputs)
        ],
    }


def _quaternions(pose: Tensor) -> Tensor:
    """(T, 3) degrees of yaw, pitch and roll → (T, 4) x y z w, each on the side of the one before it."""
    yaw, pitch, roll = (pose.deg2rad() / 2).unbind(-1)
    nil = torch.zeros_like(yaw)

    def about(axis: int, half: Tensor) -> Tensor:
        parts = [nil, nil, nil, half.cos()]
        parts[axis] = half.sin()
        return torch.stack(parts, -1)

    # `head_pose.rotation`: pitch above 0 looks up, roll above 0 leans to the right; about x and z that is backwards.
    turned = _product(about(2, -roll), _product(about(1, yaw), about(0, -pitch)))
    sides = torch.where((turned[1:] * turned[:-1]).sum(-1) < 0, -1.0, 1.0)
    return turned * torch.cat([sides.new_ones(1), sides]).cumprod(0)[:, None]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of quaternions (T, 4): first b, then a."""
    (u, w), (v, z) = ((q[:, :3], q[:, 3:]) for q in (a, b))
    return torch.cat([w * v + z * u + torch.linalg.cross(u, v), w * z - (u * v).sum(-1, keepdim=True)], -1)


class _Arrays:
    """Arrays of a document, one after the other."""

    def __init__(self):
        self._data = bytearray()
        self._views: list[dict] = []
        self._accessors: list[dict] = []

    def add(self, tensor: Tensor, *, kind: str = "VEC3", target: int | None = None, bounds: bool = False) -> int:
        """The number of the accessor of (N, …) float or whole numbers."""
        whole = not tensor.is_floating_point()
        numbers = tensor.detach().cpu().contiguous().numpy().astype("<u4" if whole else "<f4").tobytes()
        view: dict = {"buffer": 0, "byteOffset": len(self._data), "byteLength": len(numbers)}
        self._views.append(view | ({} if target is None else {"target": target}))
        count = tensor.numel() if kind == "SCALAR" else len(tensor)
        accessor: dict = {"bufferView": len(self._views) - 1, "componentType": _UINT if whole else _FLOAT}
        accessor |= {"count": count, "type": kind}
        if bounds:
            rows = tensor.reshape(count, -1)
            accessor |= {"min": rows.amin(0).tolist(), "max": rows.amax(0).tolist()}
        self._accessors.append(accessor)
        self._data += numbers
        return len(self._accessors) - 1

    def finish(self, document: dict) -> tuple[bytes, bytes]:
        """The JSON document with these arrays, and their bytes."""
        arrays = {
            "buffers": [{"byteLength": len(self._data)}],
            "bufferViews": self._views,
            "accessors": self._accessors,
        }
        return json.dumps(document | arrays).encode(), bytes(self._data)


def _primitive(arrays: _Arrays, vertices: Tensor, faces: Tensor | None) -> dict:
    vertices = vertices.detach().float().cpu()
    attributes = {"POSITION": arrays.add(vertices, target=_VERTICES, bounds=True)}
    if faces is None:
        return {"attributes": attributes, "material": 0, "mode": _POINTS}
    faces = faces.cpu()
    up = torch.tensor([0.0, 1, 0]).expand_as(vertices)  # glTF wants unit normals, at lone vertices too
    normal = normals(vertices, faces)
    normal = torch.where(normal.any(1, keepdim=True), normal, up)
    attributes["NORMAL"] = arrays.add(normal, target=_VERTICES)
    indices = arrays.add(faces, kind="SCALAR", target=_INDICES)
    return {"attributes": attributes, "material": 0, "mode": _TRIANGLES, "indices": indices}


def _document(primitives: list[dict]) -> dict:
    """All but the arrays."""
    return {
        "asset": {"version": "2.0", "generator": "ComfyUI-FantasyID"},
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorFactor": _SKIN, "metallicFactor": 0.0, "roughnessFactor": 0.8},
                "doubleSided": True,
            }
        ],
        "meshes": [{"primitives": primitives}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }


def _container(document: bytes, data: bytes) -> bytes:
    """A header and two chunks, each filled up to four bytes: JSON with blanks, numbers with zeros."""
    chunks = b""
    for kind, content, filler in ((b"JSON", document, b" "), (b"BIN\0", data, b"\0")):
        content += filler * (-len(content) % 4)
        chunks += struct.pack("<I4s", len(content), kind) + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
