"""`.glb` files: an independent reader sees the same mesh, and the container is what the standard says."""

import json
import struct

import pytest
import torch

from fantasyid_core.errors import MeshError, SaveError
from fantasyid_core.reconstruction.glb import write_glb
from fantasyid_lab.dummy_head import head


def test_an_independent_reader_sees_the_same_mesh(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    mesh = head()
    write_glb(tmp_path / "head.glb", mesh.template, mesh.faces[0])
    found = trimesh.load(tmp_path / "head.glb", force="mesh", process=False)
    assert torch.equal(torch.from_numpy(found.vertices).float(), mesh.template)
    assert torch.equal(torch.from_numpy(found.faces).long(), mesh.faces[0])
    assert found.is_watertight
    assert found.volume > 0, "wound so that the outside is outside"


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    found, at = [], 12
    while at < len(data):
        size, kind = struct.unpack_from("<I4s", data, at)
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


@pytest.mark.parametrize("with_faces", [True, False])
def test_the_container_is_well_formed(tmp_path, with_faces):
    """Lengths multiples of four, views inside the buffer, bounds of the positions, unit normals, indices in range."""
    vertices = torch.rand(5, 3)  # the last one is in no triangle
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 0, 1]]) if with_faces else None
    write_glb(tmp_path / "mesh.glb", vertices, faces)
    (first, text), (second, numbers) = chunks((tmp_path / "mesh.glb").read_bytes())
    assert (first, second, len(text) % 4, len(numbers) % 4) == (b"JSON", b"BIN\0", 0, 0)
    document = json.loads(text)
    assert document["buffers"] == [{"byteLength": len(numbers)}]
    ends = [view["byteOffset"] + view["byteLength"] for view in document["bufferViews"]]
    assert ends[-1] == len(numbers)
    position = document["accessors"][0]
    assert position["min"] == vertices.amin(0).tolist()
    assert position["max"] == vertices.amax(0).tolist()
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["mode"] == (4 if with_faces else 0)
    if with_faces:
        start = document["bufferViews"][1]["byteOffset"]
        normals = torch.frombuffer(bytearray(numbers[start : start + 60]), dtype=torch.float32).reshape(5, 3)
        assert torch.allclose(normals.norm(dim=1), torch.ones(5))
        indices = torch.frombuffer(bytearray(numbers[-36:]), dtype=torch.int32)
        assert torch.equal(indices.reshape(3, 3).long(), faces)


def test_only_meshes_are_written_and_only_where_the_disk_allows(tmp_path):
    with pytest.raises(MeshError, match="from 6 to 8"):
        write_glb(tmp_path / "mesh.glb", torch.rand(4, 3), torch.tensor([[6, 7, 8]]))
    with pytest.raises(MeshError, match="not finite"):
        write_glb(tmp_path / "mesh.glb", torch.full((4, 3), torch.nan))
    for name in ("no folder/mesh.glb", "zero\0byte.glb", "x" * 300 + ".glb"):
        with pytest.raises(SaveError, match="could not be saved"):
            write_glb(tmp_path / name, torch.rand(4, 3))
    assert list(tmp_path.iterdir()) == []
