"""Vertex files: every flavour of .ply reads, what is written reads back, damaged files give a clear error."""

import contextlib
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fantasyid_core.errors import MeshError, SaveError
from fantasyid_core.reconstruction.mesh_files import MAX_BYTES, MAX_ROWS, read_mesh, read_ply, write_obj, write_ply

VERTICES = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 3]])
FUNCTION_FIXTURE = [HealthCheck.function_scoped_fixture]


def header(order: str, *lines: str) -> bytes:
    return "\n".join(["ply", f"format {order} 1.0", "comment by a test", *lines, "end_header\n"]).encode()


def file_of(tmp_path, *content: bytes):
    path = tmp_path / "mesh.ply"
    path.write_bytes(b"".join(content))
    return path


FACE = ("element face 1", "property list uchar int vertex_indices")
XYZ = ("element vertex 4", "property float x", "property float y", "property float z")


@given(
    vertices=hnp.arrays(
        "float32",
        st.tuples(st.integers(1, 40), st.just(3)),
        elements=st.floats(width=32, **{"allow_nan": False, "allow_infinity": False}),
    ),
    data=st.data(),
)
@settings(max_examples=60, suppress_health_check=FUNCTION_FIXTURE, deadline=None)
def test_what_is_written_reads_back_exactly(tmp_path, vertices, data):
    index = st.integers(0, len(vertices) - 1)
    faces = data.draw(st.none() | st.lists(st.tuples(index, index, index), min_size=1, max_size=30))
    faces = None if faces is None else torch.tensor(faces)
    write_ply(tmp_path / "mesh.ply", torch.from_numpy(vertices), faces)
    found, found_faces = read_ply(tmp_path / "mesh.ply")
    assert torch.equal(found, torch.from_numpy(vertices))
    assert found_faces is None if faces is None else torch.equal(found_faces, faces)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [("float", "f"), ("double", "d"), ("float32", "f"), ("float64", "d")])
def test_binary_files_of_both_byte_orders_and_precisions_with_other_properties(tmp_path, order, kind, code):
    """Order of the axes, normals, colours, other elements and quadrangles as other programs write them."""
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    lines = ["element vertex 4", f"property {kind} z", "property uchar red", f"property {kind} y", f"property {kind} x"]
    lines += ["element material 2", "property list ushort short names", "property int id"]
    lines += ["element face 1", "property list uchar uint vertex_index", "property float quality"]
    rows = [struct.pack(f"{order}{code}B{code}{code}", z, 7, y, x) for x, y, z in VERTICES.tolist()]
    materials = struct.pack(f"{order}H2hi", 2, -1, -2, 5) + struct.pack(f"{order}Hi", 0, 6)
    face = struct.pack(f"{order}B4If", 4, 0, 1, 3, 2, 0.5)
    vertices, faces = read_ply(file_of(tmp_path, header(name, *lines), *rows, materials, face))
    assert torch.equal(vertices, VERTICES)
    assert faces.tolist() == [[0, 1, 3], [0, 3, 2]]


def test_ascii_files_with_other_properties(tmp_path):
    lines = [*XYZ, "property uchar red", "element face 2", "property list uchar int vertex_indices"]
    body = b"0 0 0 1\n1 0 0 1\n0 1e0 0 1\r\n1 1 .5 1\n3 0 1 2\n3 2 1 3\n"
    vertices, faces = read_ply(file_of(tmp_path, header("ascii", *lines), body))
    assert torch.equal(vertices, VERTICES)
    assert torch.equal(faces, FACES)


def test_what_is_skipped_is_not_parsed(tmp_path):
    """Colours 0…1 in columns that the header calls whole numbers, as some programs write them."""
    lines = [*XYZ, "property uchar red", "property list uchar int extra", *FACE, "property uchar green"]
    body = b"0 0 0 0.5 1 a\n1 0 0 0.25 0\n0 1 0 .7 2 1.5 nan\n1 1 .5 1.0 0\n3 0 1 2 0.5\n"
    vertices, faces = read_ply(file_of(tmp_path, header("ascii", *lines), body))
    assert torch.equal(vertices, VERTICES)
    assert faces.tolist() == [[0, 1, 2]]


DECA_OBJ = b"""# as DECA writes it
mtllib face.mtl
v 0.0 0.0 0.0
v 1.0 0.0 0.0 0.5 0.5 0.5
v 0.0 1.0 0.0
v 1.0 1.0 0.5
vt 0.1 0.9
vn 0 0 1
usemtl FaceTexture
s off
f 1/1 2/1 3/1
f 3/1/1 2//1 4
"""


@pytest.mark.parametrize("name", ["mesh.obj", "HEAD.OBJ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_obj_files_of_other_programs_read(tmp_path, name, mark):
    (tmp_path / name).write_bytes(mark + DECA_OBJ.replace(b"\n", b"\r\n"))
    vertices, faces = read_mesh(tmp_path / name)
    assert torch.equal(vertices, VERTICES)
    assert torch.equal(faces, FACES)


def test_obj_faces_may_count_backwards_have_more_corners_and_go_on_in_the_next_line(tmp_path):
    (tmp_path / "mesh.obj").write_bytes(b"v 0 0 0\nv 1 0 0\nv 1 1 0.5\nv 0 1 0\nf -4 -3 \\\n-2 -1\n")
    assert read_mesh(tmp_path / "mesh.obj")[1].tolist() == [[0, 1, 2], [0, 2, 3]]


def test_what_is_written_as_obj_reads_back(tmp_path):
    write_obj(tmp_path / "mesh.obj", VERTICES, FACES)
    vertices, faces = read_mesh(tmp_path / "mesh.obj")
    assert torch.equal(vertices, VERTICES)
    assert torch.equal(faces, FACES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no vertices"),
        (b"GIF89a", "no vertices"),
        (b"v 1 2\n", "fewer than three"),
        (b"v 1 2 a\n", "could not convert"),
        (b"v 1 2 nan\n", "not finite"),
        (b"v 1 2 1e300\n", "not finite"),
        (b"v 1 2 3\nf 1 1 0\n", "counted from 1"),
        (b"v 1 2 3\nf 1 1 2\n", "from 0 to 1"),
        (b"v 1 2 3\nf -1 -1 -2\n", "from -1 to 0"),
        (b"v 1 2 3\nf 1 1 x\n", "invalid literal"),
        (b"v 1 2 3\nf" + b" 1" * 2000, "too many corners"),
    ],
)
def test_damaged_obj_files_are_reported(tmp_path, content, message):
    (tmp_path / "mesh.obj").write_bytes(content)
    with pytest.raises(MeshError, match=rf"mesh\.obj.*({message})"):
        read_mesh(tmp_path / "mesh.obj")


@given(content=st.text("vf 0123456789.-e/\\\n", max_size=300).map(str.encode) | st.binary(max_size=200))
@settings(max_examples=200, suppress_health_check=FUNCTION_FIXTURE, deadline=None)
def test_any_obj_file_reads_or_gives_a_mesh_error(tmp_path, content):
    (tmp_path / "mesh.obj").write_bytes(content)
    with contextlib.suppress(MeshError):
        vertices, faces = read_mesh(tmp_path / "mesh.obj")
        assert vertices.isfinite().all()
        assert faces is None or (int(faces.min()) >= 0 and int(faces.max()) < len(vertices))


def test_a_file_s_content_tells_its_format(tmp_path):
    write_ply(tmp_path / "mesh.obj", VERTICES, FACES)
    assert torch.equal(read_mesh(tmp_path / "mesh.obj")[1], FACES)


def test_a_file_without_faces_is_a_mesh_without_faces(tmp_path):
    vertices, faces = read_ply(file_of(tmp_path, header("ascii", *XYZ), b"0 " * 12))
    assert vertices.shape == (4, 3)
    assert faces is None


def test_the_release_s_vertex_file_reads(flame_dir):
    vertices, faces = read_ply(flame_dir / "anne.ply")
    assert vertices.shape == (5023, 3)
    assert vertices.dtype == torch.float32
    assert faces is None
    assert 0.15 < float(vertices[:, 1].max() - vertices[:, 1].min()) < 0.4, "a head in metres"


def test_obj_files_count_from_one(tmp_path):
    write_obj(tmp_path / "mesh.obj", VERTICES, FACES)
    lines = (tmp_path / "mesh.obj").read_text().splitlines()
    assert lines == ["v 0 0 0", "v 1 0 0", "v 0 1 0", "v 1 1 0.5", "f 1 2 3", "f 3 2 4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begin with 'ply'"),
        (b"solid stl", "begin with 'ply'"),
        (b"ply\nformat ascii 1.0\n", "header does not end"),
        (b"ply\n" + b"comment x\n" * 5000, "header does not end"),
        (b"ply\nend_header\n", "lacks the format"),
        (header("morse", *XYZ), "morse"),
        (header("ascii"), "no vertices"),
        (header("ascii", "property float x"), "not a readable"),
        (header("ascii", "element vertex 4"), "no properties"),
        (header("ascii", "element vertex 4", "property quux x"), "quux"),
        (header("ascii", "element vertex 1", "property float x") + b"0", "'y'"),
        (header("ascii", *XYZ), "too early"),
        (header("ascii", *XYZ) + b"0 1 2", "too early"),
        (header("ascii", *XYZ) + b"0 1 a " * 4, "could not convert"),
        (header("ascii", *XYZ) + b"0 1 nan " * 4, "not finite"),
        (header("ascii", *XYZ) + b"0 1 1e300 " * 4, "not finite"),
        (header("binary_little_endian", *XYZ) + bytes(47), "too early"),
        (header("ascii", "element vertex 0", *XYZ[1:]), "at least one"),
        (header("ascii", "element vertex -4", *XYZ[1:]) + b"0 " * 12, "no properties|lacks"),
        (header("ascii", "element vertex 99999999999999", *XYZ[1:]) + b"0 " * 12, "more rows"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"3 0 1 4", "from 0 to 4"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"3 0 1 -1", "from -1 to 1"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"3 0 1 99999999999999999999", "not a readable"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"9999999999 0 1", "too early"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"-3 0 1", "not a readable"),
        (header("ascii", *XYZ, *FACE) + b"0 " * 12 + b"3 0 1", "too early"),
        (header("binary_little_endian", *XYZ, *FACE) + bytes(48) + b"\xff" + bytes(12), "too early"),
    ],
)
def test_damaged_files_are_reported(tmp_path, content, message):
    with pytest.raises(MeshError, match=rf"mesh\.ply.*({message})"):
        read_ply(file_of(tmp_path, content))


@given(
    order=st.sampled_from(["ascii", "binary_little_endian", "binary_big_endian"]),
    lines=st.lists(
        st.sampled_from(
            [*XYZ, *FACE, "element face 3", "property list char uchar vertex_index", "property int8 w", "element x 9"]
        ),
        max_size=12,
    ),
    body=st.binary(max_size=300) | st.text("0123456789.-e \n", max_size=300).map(str.encode),
)
@settings(max_examples=400, suppress_health_check=FUNCTION_FIXTURE, deadline=None)
def test_any_file_reads_or_gives_a_mesh_error(tmp_path, order, lines, body):
    with contextlib.suppress(MeshError):
        vertices, faces = read_ply(file_of(tmp_path, header(order, *lines), body))
        assert vertices.isfinite().all()
        assert faces is None or (int(faces.min()) >= 0 and int(faces.max()) < len(vertices))


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "mesh.ply"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    start = time.monotonic()
    with pytest.raises(MeshError, match="larger than 32 MiB"):
        read_ply(path)
    assert time.monotonic() - start < 1


EXTRA = [f"property float p{i}" for i in range(987)]


def hostile_files(folder: Path) -> Iterator[Path]:
    """Made to need many times their size, a fiftieth as large as is read at all."""
    many, long = MAX_ROWS // 50, MAX_BYTES // 100
    binary, lists = "binary_little_endian", "property list uint uchar vertex_indices"
    contents = {
        "numbers": header("ascii", f"element vertex {many}", *XYZ[1:]) + b"0 0 0 " * many,
        "triangles": header("ascii", *XYZ, f"element face {many}", FACE[1]) + b"0 " * 12 + b"3 0 1 2 " * many,
        "polygon": header(binary, *XYZ, "element face 1", lists) + bytes(48) + struct.pack("<I", long) + bytes(long),
        "properties": header("ascii", f"element vertex {long // 990}", *XYZ[1:], *EXTRA) + b"0 " * long,
    }
    for name, content in contents.items():
        path = folder / f"{name}.ply"
        path.write_bytes(content)
        yield path


def test_no_file_needs_more_memory_than_a_few_hundred_megabytes(tmp_path):
    """The peak of Python's and NumPy's memory, which grows with the file: a fiftieth for a fiftieth of it."""
    for path in hostile_files(tmp_path):
        tracemalloc.start()
        with contextlib.suppress(MeshError):
            read_ply(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 << 20, path.name


def test_a_missing_file_or_a_folder_is_reported(tmp_path):
    for path in (tmp_path / "absent.ply", tmp_path):
        with pytest.raises(MeshError, match="cannot be read"):
            read_ply(path)


def test_only_meshes_are_written_and_only_where_the_disk_allows(tmp_path):
    with pytest.raises(MeshError, match="from 6 to 9"):
        write_ply(tmp_path / "mesh.ply", VERTICES, FACES + 6)
    with pytest.raises(MeshError, match="not finite"):
        write_obj(tmp_path / "mesh.obj", VERTICES * torch.inf)
    with pytest.raises(SaveError, match="could not be saved"):
        write_ply(tmp_path / "no folder" / "mesh.ply", VERTICES, FACES)
    assert list(tmp_path.iterdir()) == []
