"""The rasteriser against a renderer that shares nothing with it, and what previews look like."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core import render
from fantasyid_core.errors import MeshError
from fantasyid_core.render import normals, rasterise, shade


def brute_force(vertices: np.ndarray, faces: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel, triangle by triangle in float64: nearest triangle, and depths of all that cover the pixel."""
    index = np.full((height, width), -1)
    nearest = np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            for i, face in enumerate(faces):
                corners = vertices[face]
                system = np.vstack([corners[:, :2].T, np.ones(3)])
                if abs(np.linalg.det(system)) < 1e-9:
                    continue
                weights = np.linalg.solve(system, [column, row, 1])
                depth = weights @ corners[:, 2]
                if (weights >= 0).all() and depth < nearest[row, column]:
                    index[row, column], nearest[row, column] = i, depth
    return index, nearest


def sphere(rings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A closed unit sphere of 2 · rings · rings quads, each two triangles, seen from outside counter-clockwise."""
    latitude = torch.linspace(0, torch.pi, rings + 1)[:, None].expand(-1, 2 * rings)
    longitude = (torch.arange(2 * rings) * torch.pi / rings)[None].expand(rings + 1, -1)
    vertices = torch.stack(
        [latitude.sin() * longitude.sin(), latitude.cos(), latitude.sin() * longitude.cos()], -1
    ).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(rings), torch.arange(2 * rings), indexing="ij")
    a, b = row * 2 * rings + column, row * 2 * rings + (column + 1) % (2 * rings)
    c, d = a + 2 * rings, b + 2 * rings
    return vertices, torch.cat([torch.stack([a, c, b], -1), torch.stack([b, c, d], -1)]).reshape(-1, 3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([4.0, 12.0, 60.0]), chunk=st.sampled_from([16, 1 << 20]))
def test_random_meshes_equal_brute_force(seed: int, spread: float, chunk: int):
    generator = np.random.default_rng(seed)
    middle = generator.uniform(0, 14, (12, 1, 3))
    vertices = (middle + generator.normal(0, spread / 3, (12, 3, 3))).reshape(-1, 3).astype(np.float32)
    faces = np.arange(36).reshape(12, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "_PAIRS", chunk)
        index, weights = rasterise(torch.from_numpy(vertices), torch.from_numpy(faces), 13, 17)
    expected, depth = brute_force(vertices.astype(np.float64), faces, 13, 17)
    assert (index.numpy() == expected).mean() > 0.99  # rounding may turn a pixel on an edge

    shown = (index >= 0).numpy() & (index.numpy() == expected)
    corners = vertices[faces[index.numpy()[shown]]]
    row, column = np.nonzero(shown)
    point = np.stack([column, row, depth[shown]], 1)
    tolerance = 1e-3 * np.abs(corners).max(initial=1)
    assert np.allclose((weights.numpy()[shown][..., None] * corners).sum(1), point, atol=tolerance)
    assert (weights.numpy()[index.numpy() < 0] == 0).all()


def test_orientation_and_pixel_centres():
    """Integers are pixel centres, x to the right, y down; smaller z is nearer; edges belong to the triangle."""
    vertices = torch.tensor([[1.0, 1, 5], [4, 1, 5], [1, 3, 5], [0, 0, 9], [9, 0, 9], [0, 9, 9]])
    index, weights = rasterise(vertices, torch.tensor([[3, 4, 5], [0, 1, 2]]), 5, 6)
    assert (index == 1).nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1]]
    assert weights[1, 4].tolist() == pytest.approx([0, 1, 0])
    assert index[0, 5] == 0


def test_no_seams_in_a_closed_mesh():
    vertices, faces = sphere(40)
    index, _ = rasterise(vertices * 100 + 127.3, faces, 256, 256)
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    inside = (x - 127.3).square() + (y - 127.3).square() < 99**2
    assert (index[inside] >= 0).all()


def test_unusable_triangles_are_left_out():
    vertices = torch.tensor(
        [[0.0, 0, 0], [8, 0, 0], [0, 8, 0], [torch.nan, 1, 1], [torch.inf, 1, 1], [-1e30, -1e30, 0]]
    )
    faces = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 0, 1], [0, 1, 1], [5, 5, 5], [0, 1, 2]])
    index, weights = rasterise(vertices, faces, 4, 4)
    assert index[0, 0] == 5
    assert set(index.unique().tolist()) <= {-1, 5}
    assert weights.isfinite().all()
    assert (rasterise(vertices, faces[:0], 4, 4)[0] == -1).all()


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (torch.rand(4, 2), None, r"\(4, 2\)"),
        (torch.rand(0, 3), None, "at least one"),
        (torch.rand(4, 3), torch.tensor([[0, 1, 4]]), "vertices 0 to 4, but there are 4"),
        (torch.rand(4, 3), torch.tensor([[0, 1, -1]]), "vertices -1 to 1"),
        (torch.rand(4, 3), torch.tensor([[0, 1]]), r"\(1, 2\)"),
        (torch.rand(4, 3), torch.rand(1, 3), "integers"),
        (torch.full((4, 3), torch.nan), None, "NaN"),
    ],
)
def test_hostile_meshes_say_why(vertices: torch.Tensor, faces: torch.Tensor | None, message: str):
    with pytest.raises(MeshError, match=message):
        shade(vertices, faces, 32)


def test_normals_of_a_sphere_point_outwards():
    vertices, faces = sphere(24)
    torch.testing.assert_close(normals(vertices, faces)[48:-48], vertices[48:-48], atol=0.03, rtol=0)


def test_preview_is_lit_from_the_upper_right_and_fits():
    vertices, faces = sphere(40)
    picture = shade(vertices * 0.1 + 3, faces, 128)
    shown = (picture - picture[0, 0]).abs().amax(-1) > 1e-4
    rows, columns = shown.nonzero().unbind(1)
    assert abs(int(rows.min()) + int(rows.max()) - 127) <= 1
    assert 110 <= int(columns.max() - columns.min()) <= 117
    assert picture[40, 85].mean() > picture[64, 64].mean() > picture[90, 40].mean()


def test_preview_faces_the_viewer():
    """Larger z hides smaller z, larger y is higher up: a small square that leans from the light, in front or behind."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    small = square * 0.4 + torch.tensor([0, 0.5, 0])
    small[:, 2] += small[:, 0]
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    faces = torch.cat([triangles, triangles + 4])
    in_front = shade(torch.cat([square, small + torch.tensor([0, 0, 1.0])]), faces, 64)
    behind = shade(torch.cat([square, small - torch.tensor([0, 0, 1.0])]), faces, 64)
    assert in_front[17, 31].mean() < behind[17, 31].mean() - 0.1
    assert torch.equal(in_front[46, 31], behind[17, 31])
    assert torch.equal(in_front[46, 31], behind[46, 31])


def test_points_alone_show_the_nearest_in_front():
    points = torch.tensor([[-1.0, -1, 0], [1, 1, 0], [0, 0, 1], [0, 0, -1]])
    picture = shade(points, None, 100)
    assert picture[50, 50].mean() > picture[5, 94].mean() > picture[5, 5].mean()
