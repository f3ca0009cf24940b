"""Binary glTF (`.glb`) out: one mesh with smooth normals, as 3D viewers and programs open it."""

import json
import struct
from pathlib import Path

import torch
from torch import Tensor

from ..geometry import check_mesh
from .mesh_files import write_bytes
from .render import normals

_FLOAT, _UINT = 5126, 5125  # glTF's numbers for types, uses and modes
_VERTICES, _INDICES = 34962, 34963
_POINTS, _TRIANGLES = 0, 4
_SKIN = [0.80, 0.76, 0.72, 1.0]


def write_glb(path: str | Path, vertices: Tensor, faces: Tensor | None = None) -> None:
    """Write a mesh; without faces, its points.

    Args:
        vertices: (V, 3) float, metres, y up: glTF's space is FLAME's.
        faces: (F, 3) int64 or None.

    Raises:
        MeshError: not a mesh.
        SaveError: the disk refuses the file.
    """
    check_mesh(vertices, faces)
    vertices = vertices.detach().float().cpu()
    parts = [("POSITION", vertices)]
    if faces is not None:
        faces = faces.cpu()
        up = torch.tensor([0.0, 1, 0]).expand_as(vertices)  # glTF wants unit normals, at lone vertices too
        normal = normals(vertices, faces)
        parts += [("NORMAL", torch.where(normal.any(1, keepdim=True), normal, up)), ("indices", faces)]

    write_bytes(Path(path), _container(*_document(parts, _TRIANGLES if faces is not None else _POINTS)))


def _document(parts: list[tuple[str, Tensor]], mode: int) -> tuple[bytes, bytes]:
    """Named arrays → the JSON document that describes them, and their bytes."""
    data, views, accessors = b"", [], []
    for name, tensor in parts:
        numbers = tensor.numpy().astype("<u4" if name == "indices" else "<f4").tobytes()
        target = _INDICES if name == "indices" else _VERTICES
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": len(numbers), "target": target})
        accessors.append(_accessor(name, tensor, len(views) - 1))
        data += numbers
    primitive = {"attributes": {name: i for i, (name, _) in enumerate(parts) if name != "indices"}, "material": 0}
    primitive |= {"mode": mode} | ({"indices": len(parts) - 1} if mode == _TRIANGLES else {})
    document = {
        "asset": {"version": "2.0", "generator": "ComfyUI-FantasyID"},
        "buffers": [{"byteLength": len(data)}],
        "bufferViews": views,
        "accessors": accessors,
        "materials": [
            {
                "pbrMetallicRoughness": {"baseColorFactor": _SKIN, "metallicFactor": 0.0, "roughnessFactor": 0.8},
                "doubleSided": True,
            }
        ],
        "meshes": [{"primitives": [primitive]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return json.dumps(document).encode(), data


def _accessor(name: str, tensor: Tensor, view: int) -> dict:
    if name == "indices":
        return {"bufferView": view, "componentType": _UINT, "count": tensor.numel(), "type": "SCALAR"}
    accessor = {"bufferView": view, "componentType": _FLOAT, "count": len(tensor), "type": "VEC3"}
    if name == "POSITION":
        accessor |= {"min": tensor.amin(0).tolist(), "max": tensor.amax(0).tolist()}
    return accessor


def _container(document: bytes, data: bytes) -> bytes:
    """A header and two chunks, each filled up to four bytes: JSON with blanks, numbers with zeros."""
    chunks = b""
    for kind, content, filler in ((b"JSON", document, b" "), (b"BIN\0", data, b"\0")):
        content += filler * (-len(content) % 4)
        chunks += struct.pack("<I4s", len(content), kind) + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
