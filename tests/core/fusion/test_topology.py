"""Mesh hierarchies: the published one reads as it is, spirals come in OpenMesh's order, damaged files are refused."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fantasyid_core.errors import MeshError, WeightsMissingError
from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.fusion.mesh_hierarchy import spirals
from fantasyid_lab.dummy_head import head

FAN = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])  # a closed fan around vertex 0


@pytest.fixture(scope="module")
def flame(flame_dir) -> mesh_hierarchy.Topology:
    return mesh_hierarchy.load(flame_dir / "transform.pkl")


@pytest.fixture
def small(tmp_path):
    """A small hierarchy as a file, and its tensors."""
    path = tmp_path / "topology.safetensors"
    mesh_hierarchy.save(head(), path)
    return path, load_file(path)


def assert_same(a: mesh_hierarchy.Topology, b: mesh_hierarchy.Topology):
    assert a.levels == b.levels
    for name in ("down", "up"):
        for x, y in zip(getattr(a, name), getattr(b, name), strict=True):
            assert x[3] == y[3]
            assert all(torch.equal(i, j) for i, j in zip(x[:3], y[:3], strict=True))
    for x, y in zip((a.template, *a.faces, *a.spirals), (b.template, *b.faces, *b.spirals), strict=True):
        assert torch.equal(x, y)


def test_the_published_hierarchy_has_flame_s_five_levels(flame):
    assert flame.levels == (5023, 1256, 314, 79, 20)
    assert [len(faces) for faces in flame.faces] == [9976, 2464, 597, 139, 34]
    assert [transform[3] for transform in flame.down] == [(1256, 5023), (314, 1256), (79, 314), (20, 79)]
    assert [transform[3] for transform in flame.up] == [(5023, 1256), (1256, 314), (314, 79), (79, 20)]
    assert [tuple(lists.shape) for lists in flame.spirals] == [(5023, 9), (1256, 9)]


def test_spirals_are_openmesh_s_to_the_last_vertex(flame, flame_dir):
    theirs = np.load(flame_dir / "openmesh_spirals_len9.npz")
    for ours, name in zip(flame.spirals, ("level0_5023", "level1_1256"), strict=True):
        assert np.array_equal(ours.numpy(), theirs[name])


@pytest.mark.alone
def test_the_published_hierarchy_loads_in_under_two_seconds(flame_dir):
    start = time.monotonic()
    mesh_hierarchy.load(flame_dir / "transform.pkl")
    assert time.monotonic() - start < 2


def test_a_hierarchy_survives_saving_and_loading(flame, tmp_path):
    mesh_hierarchy.save(flame, tmp_path / "topology.safetensors")
    assert_same(mesh_hierarchy.load(tmp_path / "topology.safetensors"), flame)


def test_a_spiral_lists_the_centre_then_its_ring_then_the_next():
    mesh = head()
    for vertex, spiral in enumerate(mesh.spirals[0].tolist()):
        ring = {v for face in mesh.faces[0].tolist() if vertex in face for v in face} - {vertex}
        assert spiral[0] == vertex
        assert set(spiral[1 : 1 + len(ring)]) == ring
        assert len(set(spiral)) == 9


def test_a_ring_is_walked_around_and_not_jumped():
    mesh = head()
    edges = {(a, b) for face in mesh.faces[0].tolist() for a in face for b in face if a != b}
    for spiral in mesh.spirals[0].tolist():
        assert all(pair in edges for pair in itertools.pairwise(spiral[1:6]))


def test_where_the_rings_run_out_the_nearest_vertices_make_the_spiral():
    points = torch.zeros(6, 3)
    points[:, 0] = torch.tensor([0.0, 4, 1, 3, 2, 9])
    assert spirals(points, FAN, length=6).tolist()[0] == [0, 2, 4, 3, 1, 5]


@given(st.integers(9, 14), st.lists(st.tuples(*[st.integers(0, 13)] * 3), max_size=14))
@settings(max_examples=300, deadline=None)
def test_any_faces_give_spirals_or_a_clear_error(count, faces):
    faces = torch.tensor(faces, dtype=torch.int64).reshape(-1, 3)
    try:
        lists = spirals(torch.rand(count, 3), faces)
    except MeshError:
        return
    assert lists.shape == (count, 9)
    assert lists.min() >= 0
    assert lists.max() < count
    assert torch.equal(lists[:, 0], torch.arange(count))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (torch.rand(9, 3), torch.tensor([[0, 1, -1]]), "from -1 to 1"),
        (torch.rand(9, 3), torch.tensor([[0, 1, 9]]), "from 0 to 9"),
        (torch.rand(9, 3), torch.tensor([[0.0, 1.0, 2.0]]), "whole numbers"),
        (torch.rand(9, 3), torch.tensor([[0, 1, 2, 3]]), "expected triangles"),
        (torch.rand(9, 3), torch.tensor([[0, 1, 2], [0, 1, 3]]), "manifold"),
        (torch.full((9, 3), torch.nan), FAN, "not finite"),
        (torch.rand(9, 2), FAN, "expected \\(vertices, 3\\)"),
        (torch.rand(0, 3), FAN, "at least one"),
        (torch.rand(5, 3), FAN, "need 9 to"),
        (torch.zeros(60_000, 3), FAN, "need 9 to"),
    ],
)
def test_meshes_that_cannot_have_spirals_are_refused(vertices, faces, message):
    with pytest.raises(MeshError, match=message):
        spirals(vertices, faces)


@pytest.mark.alone
def test_a_vertex_with_thousands_of_neighbours_is_refused_soon():
    count = 20_000
    ring = torch.arange(1, count)
    star = torch.stack([torch.zeros_like(ring), ring, ring.roll(-1)], 1)
    start = time.monotonic()
    with pytest.raises(MeshError, match="neighbours"):
        spirals(torch.rand(count, 3), star)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("spirals.0", lambda x: x - 1),
        ("spirals.0", lambda x: x + 1),
        ("spirals.1", lambda x: x[:-1]),
        ("spirals.0", lambda x: x.float()),
        ("faces.0", lambda x: x + 1),
        ("faces.1", lambda x: x * 10**9),
        ("template", lambda x: x * torch.nan),
        ("template", lambda x: x[1:]),
        ("levels", lambda x: x * 10**12),
        ("levels", lambda x: x.flip(0)),
        ("levels", lambda x: x[:1]),
        ("down.0.rows", lambda x: -x),
        ("down.0.columns", lambda x: x + 10**6),
        ("down.0.rows", lambda x: x * 0),
        ("up.0.values", lambda x: x / 0),
        ("up.1.values", lambda x: x[1:]),
        ("up.0.rows", None),
        ("spirals.0", None),
        ("levels", None),
    ],
)
def test_a_damaged_hierarchy_is_refused(small, name, change):
    path, tensors = small
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path)
    with pytest.raises(MeshError, match=r"topology\.safetensors"):
        mesh_hierarchy.load(path)


def test_files_that_are_missing_cut_short_or_of_another_kind_are_reported(small, tmp_path):
    with pytest.raises(WeightsMissingError, match=r"transform\.pkl comes with"):
        mesh_hierarchy.load(tmp_path / "transform.pkl")
    path, _ = small
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MeshError, match="damaged"):
        mesh_hierarchy.load(path)
    (tmp_path / "transform.pkl").write_bytes(b"\x80\x04}.")
    with pytest.raises(MeshError, match="not a mesh hierarchy"):
        mesh_hierarchy.load(tmp_path / "transform.pkl")
