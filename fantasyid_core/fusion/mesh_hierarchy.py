"""A mesh hierarchy: what the spiral network knows of the mesh beforehand. Data, not code: FLAME's is one of many.

Read from the published `transform.pkl` or from a `topology.safetensors` of our own, which also holds the spirals.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import MeshError, WeightsMissingError
from ..geometry import check_mesh
from ..io import unpickle
from ..io.layout import save_tensors
from ..io.listing import has_suffix
from ..io.weights import SAFETENSORS
from .spirals import spirals

__all__ = ["Topology", "load", "save", "spirals"]

Transform = tuple[Tensor, Tensor, Tensor, tuple[int, int]]
"""Sparse matrix: rows (N,) int64, columns (N,) int64, values (N,) float32, shape."""

RELEASE_LEVELS = 2  # the released network works on 5023, 1256 and 314 of FLAME's five levels
SPIRAL_LENGTH = 9
MAX_SUMMANDS = 64  # vertices that one vertex of another level is made of (FLAME: 3); bounds the memory of a bad file
PARTS = ("rows", "columns", "values")


@dataclass(frozen=True, eq=False)
class Topology:
    """Levels of a mesh from fine to coarse, on the CPU.

    Attributes:
        levels: vertex counts.
        template: (levels[0], 3) float32, the finest level's vertices.
        faces: for each level (F, 3) int64.
        down: `down[i]` takes level i to level i + 1: sparse (levels[i + 1], levels[i]).
        up: `up[i]` takes level i + 1 back to level i: sparse (levels[i], levels[i + 1]).
        spirals: for each level that the network decodes to, (levels[i], 9) int64. FLAME: two, of 5023 and 1256.
    """

    levels: tuple[int, ...]
    template: Tensor
    faces: tuple[Tensor, ...]
    down: tuple[Transform, ...]
    up: tuple[Transform, ...]
    spirals: tuple[Tensor, ...]


def load(path: str | Path, levels: int = RELEASE_LEVELS) -> Topology:
    """Read a hierarchy from `transform.pkl` (nothing of it is executed) or `topology.safetensors`.

    Args:
        levels: for how many levels of a `transform.pkl` spirals are made; the other format holds them.

    Raises:
        WeightsMissingError: there is no such file.
        WeightsError: the pickle is unsafe or damaged.
        MeshError: the parts do not fit each other.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsMissingError(
            f"Copy transform.pkl into the folder of {path}: the mesh hierarchy is not there. transform.pkl comes with "
            "the code of FantasyID."
        )
    return _read_safetensors(path) if has_suffix(path, SAFETENSORS) else _read_pickle(path, levels)


def save(topology: Topology, path: str | Path) -> None:
    """Write `topology.safetensors`. Raises SaveError when the disk refuses it."""
    tensors = {"levels": torch.tensor(topology.levels), "template": topology.template}
    tensors |= {f"faces.{i}": faces for i, faces in enumerate(topology.faces)}
    tensors |= {f"spirals.{i}": lists for i, lists in enumerate(topology.spirals)}
    for name, transforms in (("down", topology.down), ("up", topology.up)):
        for i, (*transform, _) in enumerate(transforms):
            tensors |= {f"{name}.{i}.{part}": tensor for part, tensor in zip(PARTS, transform, strict=True)}
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(path))


def _read_pickle(path: Path, levels: int) -> Topology:
    content = unpickle.load(path)
    names = ("vertices", "face", "down_transform", "up_transform")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in names):
        raise MeshError(
            f"{path} is not a mesh hierarchy: expected a dictionary of the lists {', '.join(names)}. "
            "Copy or download it again."
        )
    vertices = [torch.from_numpy(unpickle.array(x, f"vertices of {path}")) for x in content["vertices"]]
    faces = [torch.from_numpy(unpickle.array(x, f"faces of {path}").astype("int64")) for x in content["face"]]
    down, up = (tuple(_transform(x, name, path) for x in content[name]) for name in names[2:])
    if not 1 <= levels < len(vertices) or len(faces) != len(vertices):
        raise MeshError(
            f"{path} has {len(vertices)} levels and {len(faces)} of faces; expected more than {levels}. "
            "Copy or download it again."
        )
    lists = tuple(spirals(vertices[i], faces[i], SPIRAL_LENGTH) for i in range(levels))
    counts = tuple(len(level) for level in vertices)
    return _checked(Topology(counts, vertices[0].float(), tuple(faces), down, up, lists), path)


def _transform(value: object, name: str, path: Path) -> Transform:
    matrix = unpickle.sparse(value, f"{name} of {path}")
    rows, columns, values = (torch.from_numpy(x) for x in (matrix.rows, matrix.columns, matrix.values))
    return rows, columns, values.float(), matrix.shape


def _read_safetensors(path: Path) -> Topology:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise MeshError(f"{path} is damaged or no safetensors file ({error}): copy it again.") from error
    try:
        levels = tuple(tensors["levels"].tolist())
        steps = range(len(levels) - 1)
        parts = {name: [tuple(tensors[f"{name}.{i}.{x}"] for x in PARTS) for i in steps] for name in ("down", "up")}
        down = tuple((*parts["down"][i], (levels[i + 1], levels[i])) for i in steps)
        up = tuple((*parts["up"][i], (levels[i], levels[i + 1])) for i in steps)
        faces = tuple(tensors[f"faces.{i}"] for i in range(len(levels)))
        lists = tuple(tensors[f"spirals.{i}"] for i in steps if f"spirals.{i}" in tensors)
        return _checked(Topology(levels, tensors["template"], faces, down, up, lists), path)
    except (KeyError, TypeError) as error:
        raise MeshError(f"{path} is not a mesh hierarchy: it lacks {error}. Copy or download it again.") from error


def _checked(topology: Topology, path: Path) -> Topology:
    """The topology, if its parts fit each other, no index leads out of its level and every number is finite."""
    levels, problem = topology.levels, f"{path} is damaged or no mesh hierarchy"
    check_mesh(topology.template, topology.faces[0], f"The mesh in {path}")
    if len(topology.template) != levels[0] or sorted(levels, reverse=True) != list(levels) or levels[-1] < 1:
        raise MeshError(
            f"{problem}: {len(topology.template)} vertices on levels of {levels}, expected fine to coarse. "
            "Copy or download it again."
        )
    if not len(topology.down) == len(topology.up) == len(levels) - 1 >= len(topology.spirals) >= 1:
        raise MeshError(
            f"{problem}: {len(levels)} levels need as many transforms less one, and some spirals. "
            "Copy or download it again."
        )
    for i, faces in enumerate(topology.faces):
        _check_indices(faces, levels[i], f"{problem}: the faces of level {i}")
    for i, (down, up) in enumerate(zip(topology.down, topology.up, strict=True)):
        _check_transform(down, (levels[i + 1], levels[i]), f"{problem}: the transform down from level {i}")
        _check_transform(up, (levels[i], levels[i + 1]), f"{problem}: the transform up to level {i}")
    for i, lists in enumerate(topology.spirals):
        if lists.ndim != 2 or len(lists) != levels[i]:
            raise MeshError(
                f"{problem}: spirals of level {i} are {tuple(lists.shape)}, expected {levels[i]} rows. "
                "Copy or download it again."
            )
        _check_indices(lists, levels[i], f"{problem}: the spirals of level {i}")
    return topology


def _check_transform(transform: Transform, shape: tuple[int, int], what: str) -> None:
    rows, columns, values, found = transform
    if found != shape or not rows.shape == columns.shape == values.shape == (len(rows),):
        raise MeshError(f"{what} is {found}, expected {shape}. Copy or download it again.")
    _check_indices(rows, shape[0], f"{what}: its rows")
    _check_indices(columns, shape[1], f"{what}: its columns")
    if not values.isfinite().all() or int(rows.bincount().max()) > MAX_SUMMANDS:
        raise MeshError(
            f"{what} is not finite, or adds up more than {MAX_SUMMANDS} vertices. Copy or download it again."
        )


def _check_indices(indices: Tensor, count: int, what: str) -> None:
    if indices.dtype != torch.int64 or not indices.numel() or int(indices.min()) < 0 or int(indices.max()) >= count:
        raise MeshError(f"{what} are not whole numbers from 0 to {count - 1}. Copy or download it again.")
