"""What previews of meshes look like."""

import pytest
import torch

from fantasyid_core.errors import MeshError
from fantasyid_core.render import normals, shade


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (torch.rand(4, 2), None, r"\(4, 2\)"),
        (torch.rand(2, 4, 3), None, "one mesh"),
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


def test_normals_of_a_sphere_point_outwards(sphere):
    vertices, faces = sphere(24)
    torch.testing.assert_close(normals(vertices, faces)[48:-48], vertices[48:-48], atol=0.03, rtol=0)


def test_preview_is_lit_from_the_upper_right_and_fits(sphere):
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
