"""`.glb` files: an independent reader sees the same mesh, and the container is what the standard says."""

import json
import struct
from dataclasses import replace

import pytest
import torch

from fantasyid_core.errors import MeshError, SaveError
from fantasyid_core.reconstruction.animation import Animation
from fantasyid_core.reconstruction.glb import write_animated_glb, write_glb
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


@pytest.fixture
def nodding() -> Animation:
    """Five vertices, three ways of which the second is never used, seven frames with all turns."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 3, generator=draw) * torch.tensor([1.0, 0, 1])
    pose = 50 * torch.randn(7, 3, generator=draw)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [2, 3, 4]])
    vertices, ways = torch.rand(5, 3, generator=draw), torch.rand(5, 3, 3, generator=draw)
    return Animation(vertices, faces, ways, weights, pose, torch.tensor([0.1, -0.2, 0.3]), fps=25.0)


def test_a_reader_that_plays_the_file_sees_every_frame(tmp_path, nodding):
    """By the standard: positions + weights · targets, then the nodes' translations and the outer one's quaternion."""
    write_animated_glb(tmp_path / "nod.glb", nodding)
    (_, text), (_, numbers) = chunks((tmp_path / "nod.glb").read_bytes())
    document = json.loads(text)

    def array(number: int) -> torch.Tensor:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        kind = {5126: torch.float32, 5125: torch.int32}[accessor["componentType"]]
        data = numbers[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = torch.frombuffer(bytearray(data), dtype=kind).reshape(accessor["count"], -1)
        if "min" in accessor:
            assert accessor["min"] == values.amin(0).tolist()
            assert accessor["max"] == values.amax(0).tolist()
        return values

    (animation,), (mesh,), (outer, inner) = document["animations"], document["meshes"], document["nodes"]
    assert document["scenes"] == [{"nodes": [0]}]
    assert outer["children"] == [1]
    assert inner["mesh"] == 0
    primitive = mesh["primitives"][0]
    targets = torch.stack([array(target["POSITION"]) for target in primitive["targets"]])
    assert len(targets) == len(mesh["weights"]) == 2
    keys = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        torch.testing.assert_close(array(sampler["input"])[:, 0], torch.arange(7) / 25)
        keys[channel["target"]["path"], channel["target"]["node"]] = array(sampler["output"])
    quaternions, weights = keys["rotation", 0], keys["weights", 1].reshape(7, 2)
    assert (quaternions[1:] * quaternions[:-1]).sum(-1).min() >= 0, "the short way round"
    vector, scalar = quaternions[:, None, :3], quaternions[:, None, 3:]
    moved = array(primitive["attributes"]["POSITION"]) + torch.einsum("tm,mvx->tvx", weights, targets)
    moved = moved + torch.tensor(inner["translation"])
    across = 2 * torch.linalg.cross(vector.expand_as(moved), moved)
    turned = moved + scalar * across + torch.linalg.cross(vector.expand_as(moved), across)
    torch.testing.assert_close(turned + torch.tensor(outer["translation"]), nodding.vertices(), atol=1e-5, rtol=0)


def test_a_head_that_only_turns_has_no_morph_targets_and_nothing_is_no_animation(tmp_path, nodding):
    write_animated_glb(tmp_path / "turn.glb", replace(nodding, weights=torch.zeros(7, 3), faces=None))
    (_, text), _ = chunks((tmp_path / "turn.glb").read_bytes())
    document = json.loads(text)
    assert "targets" not in document["meshes"][0]["primitives"][0]
    assert [channel["target"]["path"] for channel in document["animations"][0]["channels"]] == ["rotation"]
    for change in ({"pose": torch.full((7, 3), torch.nan)}, {"weights": torch.zeros(0, 3), "pose": torch.zeros(0, 3)}):
        with pytest.raises(MeshError, match="not finite"):
            write_animated_glb(tmp_path / "x.glb", replace(nodding, **change))
