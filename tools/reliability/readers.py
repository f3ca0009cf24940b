"""Every reader of outside data, with small valid files to begin from and the errors that it may raise."""

import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from PIL import Image

from fantasyid_core.fusion.identity import Identity, load_identity, save_identity
from fantasyid_core.images import load_photo
from fantasyid_core.io import unpickle, weights
from fantasyid_core.reconstruction import flame, mesh_files
from fantasyid_core.reconstruction.performance import Performance, load_performance, save_performance
from fantasyid_lab.training import clip_files, settings


@dataclass(frozen=True)
class Reader:
    """A reader and what it is given.

    Attributes:
        suffix: of the files.
        seeds: small valid files.
        read: path → anything; raises FantasyIDError where a file cannot be used.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]


def _saved(save: Callable[[Path], object], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        save(path)
        return path.read_bytes()


def _photos() -> list[bytes]:
    colours = Image.fromarray((np.arange(20 * 17 * 3) % 256).astype(np.uint8).reshape(20, 17, 3))
    deep = Image.fromarray(np.full((17, 20), 3000, np.uint16))
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    pictures = [
        (colours, "PNG", {}),
        (colours.convert("RGBA"), "PNG", {}),
        (colours.convert("P"), "PNG", {}),
        (deep, "PNG", {}),
        (colours, "JPEG", {"exif": turned}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "WEBP", {}),
        (colours.convert("L"), "TIFF", {}),
        (colours, "BMP", {}),
        (colours.convert("P"), "GIF", {}),
    ]
    return [_saved(lambda path, p=p, f=f, o=o: p.save(path, f, **o), ".img") for p, f, o in pictures]


def _clip() -> list[bytes]:
    from tools.assets.draw_example_photos import write_video  # here: not every machine that fuzzes has PyAV

    frames = np.full((3, 16, 16, 3), np.array([10, 90, 200])[:, None, None, None], np.uint8)
    return [_saved(lambda path: write_video(path, frames), ".mp4")]


def _read_clip(path: Path) -> object:
    frames, _ = clip_files.measure(path)
    return list(clip_files.read_frames(path, range(min(frames, 4)))) if frames else None


def _tetrahedron() -> tuple[torch.Tensor, torch.Tensor]:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def _ply() -> list[bytes]:
    header = b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    faces = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    return [_saved(lambda path: mesh_files.write_ply(path, *_tetrahedron()), ".ply"), header + faces]


def _obj() -> list[bytes]:
    quads = b"# a quad\nv 0 0 0\nv 1 0 0\nv 1 1 0 0.5 0.5 0.5\nv 0 1 0\nvt 0 0\nvn 0 0 1\nf 1/1/1 2//1 3/1 -1\n"
    return [_saved(lambda path: mesh_files.write_obj(path, *_tetrahedron()), ".obj"), quads]


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(12.0).view(3, 4),
        "b": torch.ones(2, 3, dtype=torch.int8),
        "b.row_scale": torch.ones(2),
    }


def _safetensors() -> list[bytes]:
    from safetensors.torch import save

    return [save(_tensors(), {"config": '{"x": 1}'}), save({"x": torch.zeros(2, dtype=torch.bfloat16)})]


def _bin() -> list[bytes]:
    plain = _saved(lambda path: torch.save(_tensors(), path), ".bin")
    old = _saved(lambda path: torch.save(_tensors(), path, _use_new_zipfile_serialization=False), ".bin")
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as source, zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return [plain, old, stored.getvalue()]


def _pickles() -> list[bytes]:
    content = {"v_template": np.zeros((4, 3)), "f": np.arange(6, dtype=np.uint32).reshape(2, 3), "name": "x", "n": None}
    return [pickle.dumps(content, protocol) for protocol in (0, 2, 4)]


def _flame() -> list[bytes]:
    """A head of four vertices and three joints under FLAME's names, as Python 2 pickled it."""
    vertices, faces = (x.numpy() for x in _tetrahedron())
    regressor = scipy.sparse.csc_matrix(np.full((3, 4), 0.25))
    content = {
        "v_template": vertices.astype(np.float64),
        "f": faces.astype(np.uint32),
        "shapedirs": np.zeros((4, 3, 310)),
        "posedirs": np.zeros((4, 3, 18)),
        "weights": np.full((4, 3), 1 / 3),
        "J_regressor": regressor,
        "kintree_table": np.array([[2**32 - 1, 0, 1], [0, 1, 2]], np.int64),
    }
    return [pickle.dumps(content, protocol) for protocol in (0, 2)]


def _identity() -> list[bytes]:
    identity = Identity(torch.ones(2, 8), torch.ones(3, 8), torch.zeros(4, 4, 3))
    return [_saved(lambda path: save_identity(identity, path), ".safetensors")]


def _performance() -> list[bytes]:
    performance = Performance(
        expression=torch.zeros(3, 5),
        jaw=torch.zeros(3, 3),
        pose=torch.zeros(3, 3),
        confidence=torch.ones(3),
        fps=8.0,
        basis="0123456789abcdef",
    )
    return [_saved(lambda path: save_performance(performance, path), ".safetensors")]


def _stages() -> list[bytes]:
    return [path.read_bytes() for path in sorted(settings.HERE.glob("*.toml"))]


def _read_caption(path: Path) -> str:
    return clip_files.read_caption(path.with_suffix(".mp4"))


def _read_config(path: Path) -> object:
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(path.read_bytes())
    return weights.read_config(folder)


READERS: dict[str, Reader] = {
    "photo": Reader(".png", _photos, load_photo),
    "clip": Reader(".mp4", _clip, _read_clip),
    "caption": Reader(".txt", lambda: ["A woman smiles, ünïcode.\n".encode(), "﻿x".encode("utf-16")], _read_caption),
    "mesh.ply": Reader(".ply", _ply, mesh_files.read_mesh),
    "mesh.obj": Reader(".obj", _obj, mesh_files.read_mesh),
    "pickle": Reader(".pkl", _pickles, unpickle.load),
    "flame": Reader(".pkl", _flame, flame.load),
    "safetensors": Reader(".safetensors", _safetensors, weights.read),
    "torch": Reader(".bin", _bin, weights.read),
    "config": Reader(".json", lambda: [json.dumps({"num_layers": 2, "x": [1.5, None]}).encode()], _read_config),
    "identity": Reader(".safetensors", _identity, load_identity),
    "performance": Reader(".safetensors", _performance, load_performance),
    "training": Reader(".toml", _stages, settings.read),
}
