"""Mesh files: `.ply` and `.obj`, in and out. Vertices (V, 3) and triangles (F, 3), nothing else."""

import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import MeshError, SaveError
from ..geometry import check_mesh
from ..io.listing import has_suffix

# A face mesh has a few megabytes at most; what a hostile file can make us allocate is bounded by these.
MAX_BYTES = 1 << 25
MAX_ROWS = 1_000_000
MAX_CORNERS = 1_000  # of one face
MAX_HEADER_LINES = 1_000
BOM = b"\xef\xbb\xbf"  # that Windows' editors put in front of a text
Mesh = tuple[Tensor, Tensor | None]
"""vertices (V, 3) float32, faces (F, 3) int64 or `None`"""
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_USED = {"x", "y", "z", "vertex_index", "vertex_indices"}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass
class _Property:
    name: str
    kind: str
    count_kind: str | None = None
    """Of a list: the type of its length."""


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)


def read_ply(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read a `.ply`, ascii or binary, in any number type; other elements and properties are skipped.

    Returns:
        vertices (V, 3) float32; faces (F, 3) int64, polygons cut into triangles, or `None` where the file has none.

    Raises:
        MeshError: the file is missing, no `.ply`, truncated, larger than 32 MiB, or has vertices that are not finite or
            faces that refer to vertices that are not there.
    """
    return _read(path, ".ply", _parse)


def read_obj(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read a Wavefront `.obj`, such as DECA writes it: its `v` and `f` lines; all others are skipped.

    Returns, and raises MeshError, as `read_ply`.
    """
    return _read(path, ".obj", _parse_obj)


def read_mesh(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read a `.ply` or `.obj`, told by its content: only a `.ply` begins with that word. Raises as `read_ply`."""
    try:
        with Path(path).open("rb") as file:
            is_ply = file.read(6).removeprefix(BOM).startswith(b"ply")
    except OSError as error:
        raise _missing(Path(path), error) from error
    return read_ply(path) if is_ply or not has_suffix(path, [".obj"]) else read_obj(path)


def _read(path: str | Path, kind: str, parse: Callable[[bytes], Mesh]) -> Mesh:
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MeshError(
                f"{path} is larger than 32 MiB; a face mesh has a few megabytes at most. Export the face alone."
            )
        data = path.read_bytes().removeprefix(BOM)
    except OSError as error:
        raise _missing(path, error) from error
    try:
        vertices, faces = parse(data)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise MeshError(
            f"{path} is not a readable {kind} file ({error}). Export the mesh again as .ply or .obj."
        ) from error
    check_mesh(vertices, faces, f"The mesh in {path}")
    return vertices, faces


def _missing(path: Path, error: OSError) -> MeshError:
    return MeshError(f"{path} cannot be read ({error}). Put the file there, or choose another.")


def write_ply(path: str | Path, vertices: Tensor, faces: Tensor | None = None) -> None:
    """Write a binary `.ply` of float32 vertices and int32 triangles. Raises MeshError (not a mesh), SaveError."""
    check_mesh(vertices, faces)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    body = vertices.detach().cpu().numpy().astype("<f4").tobytes()
    if faces is not None:
        header += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
        rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        rows["count"], rows["corners"] = 3, faces.cpu().numpy()
        body += rows.tobytes()
    write_bytes(Path(path), f"{header}end_header\n".encode() + body)


def write_obj(path: str | Path, vertices: Tensor, faces: Tensor | None = None) -> None:
    """Write a Wavefront `.obj`. Raises MeshError (not a mesh), SaveError."""
    check_mesh(vertices, faces)
    lines = ["v {:.9g} {:.9g} {:.9g}\n".format(*vertex) for vertex in vertices.tolist()]
    if faces is not None:
        lines += ["f {} {} {}\n".format(*face) for face in (faces + 1).tolist()]
    write_bytes(Path(path), "".join(lines).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a mesh file. Raises SaveError where the disk refuses it."""
    try:
        path.write_bytes(data)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise SaveError(f"The mesh could not be saved to {path}: {error}. Free some disk space.") from error


def _parse_obj(data: bytes) -> Mesh:
    vertices, polygons = [], []
    for line in data.replace(b"\\\n", b" ").replace(b"\\\r\n", b" ").splitlines():
        tokens = line.split()
        if not tokens or tokens[0] not in (b"v", b"f"):
            continue
        if tokens[0] == b"v":  # colours or a weight may follow
            vertices.append([float(word) for word in tokens[1:4]])
            if len(vertices[-1]) != 3:
                raise ValueError("a vertex has fewer than three coordinates")
        else:  # vertex, or vertex/texture/normal; counted from 1, or backwards from the last one so far
            numbers = [int(word.partition(b"/")[0]) for word in tokens[1:]]
            if 0 in numbers:
                raise ValueError("a face names vertex 0; they are counted from 1")
            polygons.append([n - 1 if n > 0 else len(vertices) + n for n in numbers])
        if max(len(vertices), len(polygons)) > MAX_ROWS:
            raise ValueError("it has more rows than a face mesh")
    if not vertices:
        raise ValueError("it has no vertices")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is reported
        points = torch.from_numpy(np.array(vertices).astype(np.float32))
    faces = _triangles(polygons) if polygons else None
    return points, faces if faces is not None and len(faces) else None


def _parse(data: bytes) -> Mesh:
    file = io.BytesIO(data)
    order, elements = _header(file)
    if sum(element.count for element in elements) > min(len(data), MAX_ROWS):  # every row takes at least a byte
        raise ValueError("its header announces more rows than the file is long")
    vertices = faces = None
    tokens = (word.group() for word in re.finditer(rb"\S+", file.read())) if not order else iter(())
    for element in elements:
        columns = _ascii(tokens, element) if not order else _binary(file, element, order)
        if element.name == "vertex":
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is reported
                vertices = torch.from_numpy(np.stack([columns[axis] for axis in "xyz"], 1).astype(np.float32))
        elif element.name == "face" and element.count:
            faces = _triangles(columns["vertex_index" if "vertex_index" in columns else "vertex_indices"])
    if vertices is None:
        raise ValueError("it has no vertices")
    return vertices, faces if faces is not None and len(faces) else None


def _header(file: io.BytesIO) -> tuple[str, list[_Element]]:
    if file.readline().strip() != b"ply":
        raise ValueError("it does not begin with 'ply'")
    order, elements = None, []
    for _ in range(MAX_HEADER_LINES):
        tokens = file.readline(1_000).decode("latin1").split()
        match tokens:
            case ["format", name, _]:
                order = _FORMATS[name]
            case ["element", name, count]:
                elements.append(_Element(name, int(count)))
            case ["property", "list", count_kind, kind, name]:
                elements[-1].properties.append(_Property(name, _TYPES[kind], _TYPES[count_kind]))
            case ["property", kind, name]:
                elements[-1].properties.append(_Property(name, _TYPES[kind]))
            case ["end_header"]:
                if order is None or any(element.count < 0 or not element.properties for element in elements):
                    raise ValueError("its header lacks the format, or an element has no properties")
                return order, elements
    raise ValueError("its header does not end")


def _ascii(tokens: Iterator[bytes], element: _Element) -> dict[str, list]:
    columns: dict[str, list] = {p.name: [] for p in element.properties}
    for _ in range(element.count):
        for p in element.properties:
            count = int(next(tokens, b"")) if p.count_kind else 1
            values = list(itertools.islice(tokens, count))
            if len(values) != count:
                raise ValueError("it ends too early")
            if p.name in _USED:  # of what is skipped some programs write other numbers than the header says
                number = float if p.kind.startswith("f") else int
                columns[p.name].append([number(v) for v in values] if p.count_kind else number(values[0]))
    return columns


def _binary(file: io.BytesIO, element: _Element, order: str) -> Mapping[str, list | np.ndarray]:
    if not any(p.count_kind for p in element.properties):
        row = np.dtype([(str(i), order + p.kind) for i, p in enumerate(element.properties)])
        table = np.frombuffer(_take(file, row.itemsize * element.count), row)
        return {p.name: table[str(i)] for i, p in enumerate(element.properties)}
    columns: dict[str, list] = {p.name: [] for p in element.properties}
    for _ in range(element.count):
        for p in element.properties:
            count = int(_numbers(file, order + p.count_kind, 1)[0]) if p.count_kind else 1
            values = _numbers(file, order + p.kind, count)
            if p.name in _USED:
                columns[p.name].append(values if p.count_kind else values[0])
    return columns


def _numbers(file: io.BytesIO, kind: str, count: int) -> list:
    return np.frombuffer(_take(file, np.dtype(kind).itemsize * count), kind).tolist()


def _take(file: io.BytesIO, size: int) -> bytes:
    data = file.read(max(size, 0))
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def _triangles(polygons: list | np.ndarray) -> Tensor:
    """Fans of triangles (F, 3) int64; polygons of fewer than three corners are dropped."""
    if max(map(len, polygons)) > MAX_CORNERS or sum(map(len, polygons)) > 3 * MAX_ROWS:
        raise ValueError("its faces have too many corners")
    corners = (x for p in polygons for i in range(1, len(p) - 1) for x in (p[0], p[i], p[i + 1]))
    return torch.from_numpy(np.fromiter(corners, np.int64).reshape(-1, 3))
