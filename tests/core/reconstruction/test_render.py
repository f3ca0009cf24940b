"""What previews of meshes look like."""

import pytest
import torch

from fantasyid_core.errors import MeshError
from fantasyid_core.reconstruction.render import normals, overlay, shade, turntable
from fantasyid_lab.dummy_head import head


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


def test_a_turntable_begins_at_the_front_turns_to_the_right_and_does_not_pulse():
    """The egg's nose: in the middle, at the right edge, hidden, at the left edge."""
    mesh = head()
    front, right, back, left = turntable(mesh.template + 7, mesh.faces[0], 4, 96)
    silhouettes = [(picture > 0.13).any(-1) for picture in (front, right, back, left)]
    rows = [part.any(1).nonzero()[:, 0] for part in silhouettes]
    assert all(torch.equal(found, rows[0]) for found in rows[1:]), "the same height from all sides"
    widths = [int(part.any(0).sum()) for part in silhouettes]
    assert widths[1] == pytest.approx(widths[3], abs=1)
    assert widths[1] > widths[0] == widths[2]
    middle = [float(part.nonzero()[:, 1].float().mean()) for part in silhouettes]
    assert middle[1] < 47 < 48 < middle[3], "the nose points right, then left: most of the head is on the other side"


def test_a_cloud_of_points_turns_too():
    points = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    widths = [int((picture > 0.13).any(-1).any(0).sum()) for picture in turntable(points, None, 4, 128)]
    assert widths[0] == pytest.approx(widths[2], abs=1)
    assert widths[1] == widths[3] < widths[0] / 2, "seen from the side the three are in line"


def test_a_turntable_of_no_frames_is_refused(sphere):
    with pytest.raises(MeshError, match="0 frames"):
        turntable(*sphere(8), 0)


def test_an_overlay_covers_the_mesh_s_pixels_and_no_others():
    photo = torch.rand(60, 90, 3)
    square = torch.tensor([[20.0, 10, 0], [40, 10, 0], [40, 30, 0], [20, 30, 0]])
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
    picture = overlay(photo, square, faces)
    changed = (picture != photo).any(-1)
    expected = torch.zeros(60, 90, dtype=torch.bool)
    expected[10:31, 20:41] = True
    assert torch.equal(changed, expected)
    assert torch.equal(overlay(photo, square, faces, opacity=0.0), photo)
    assert (overlay(photo, square, faces, opacity=1.0)[10:31, 20:41].std((0, 1)) < 1e-5).all()


def test_a_large_photo_is_reduced_and_the_mesh_with_it():
    picture = overlay(
        torch.zeros(600, 300, 3), torch.tensor([[0.0, 300, 5], [299, 300, 5], [0, 599, 5]]), None, 1.0, 100
    )
    assert picture.shape == (100, 50, 3)
    rows, columns = (picture.sum(-1) > 0).nonzero().unbind(1)
    assert (int(rows.max()), int(columns.max())) == (99, 49)
    assert int(rows.min()) > 30


def test_a_mesh_outside_of_the_photo_leaves_it_as_it_is():
    photo = torch.rand(40, 40, 3)
    far = torch.tensor([[500.0, 500, 0], [600, 500, 0], [500, 600, 0]])
    for faces in (None, torch.tensor([[0, 1, 2]])):
        assert torch.equal(overlay(photo, far, faces), photo)


def test_pictures_equal_one_by_one_and_as_a_batch():
    mesh = head()
    turns = turntable(mesh.template, mesh.faces[0], 6, 64)
    assert torch.equal(turntable(mesh.template, mesh.faces[0], 2, 64), turns[::3])
