"""What a detector returns: suppression, mirrored and turned pictures."""

from dataclasses import astuple

import pytest
import torch

from fantasyid_core.detection.detections import Detections, intersections, nms

HEIGHT, WIDTH = 60, 80
SEED = torch.Generator().manual_seed(0)
CORNERS = torch.rand(4, 2, 2, generator=SEED) * 50
FACES = Detections(
    torch.cat([CORNERS.amin(1), CORNERS.amax(1)], 1),
    torch.rand(4, generator=SEED),
    torch.rand(4, 5, 2, generator=SEED) * 50,
)


def at(*squares: tuple[float, float, float]) -> Detections:
    """Faces in squares from (x, 0), each with its side and its score."""
    boxes = torch.tensor([[x, 0, x + side, side] for x, side, _ in squares]).reshape(-1, 4)
    return Detections(boxes, torch.tensor([score for *_, score in squares]), torch.zeros(len(squares), 5, 2))


def test_suppression_keeps_the_most_certain_of_overlapping_boxes():
    candidates = at((0, 10, 0.7), (1, 10, 0.9), (30, 10, 0.6), (31, 2, 0.8))
    assert nms(candidates, 0.3).scores.tolist() == pytest.approx([0.9, 0.8, 0.6])
    assert nms(candidates, 0.5, of_smaller=True).scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(nms(at(), 0.3)) == 0


def test_equal_scores_keep_their_order():
    candidates = at((0, 10, 0.8), (20, 10, 0.8), (40, 10, 0.8))
    assert torch.equal(nms(candidates, 0.3).boxes, candidates.boxes)


def test_sizes_areas_and_what_is_shared_with_a_box():
    faces = at((0, 10, 0.7), (30, 4, 0.9))
    assert faces.sizes.tolist() == [[10, 10], [4, 4]]
    assert faces.areas.tolist() == [100, 16]
    assert intersections(faces.boxes, torch.tensor([5.0, 5, 50, 8])).tolist() == [15, 0]
    assert faces.best_score == pytest.approx(0.9)
    assert at().best_score == 0


def test_points_are_scaled_then_shifted():
    scale, shift = torch.tensor([2.0, 3]), torch.tensor([1.0, -1])
    moved = FACES.moved(scale, shift)
    torch.testing.assert_close(moved.boxes, FACES.boxes * scale.repeat(2) + shift.repeat(2))
    torch.testing.assert_close(moved.landmarks, FACES.landmarks * scale + shift)


def test_in_a_mirror_the_right_eye_is_the_left():
    mirrored = FACES.mirrored(WIDTH)
    x, y = FACES.landmarks[0, 1].tolist()
    x0, y0, x1, y1 = FACES.boxes[0].tolist()
    assert mirrored.landmarks[0, 0].tolist() == pytest.approx([WIDTH - x, y])
    assert mirrored.boxes[0].tolist() == pytest.approx([WIDTH - x1, y0, WIDTH - x0, y1])
    torch.testing.assert_close(astuple(mirrored.mirrored(WIDTH)), astuple(FACES))


@pytest.mark.parametrize("quarters", range(4))
def test_places_in_a_turned_picture_are_those_in_the_picture(quarters: int):
    picture = torch.zeros(HEIGHT, WIDTH)
    picture[10:20, 30:50] = 1
    rows, columns = (torch.rot90(picture, quarters) > 0).nonzero(as_tuple=True)
    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])[None].float()
    turned = Detections(box, torch.ones(1), box[:, :2].expand(1, 5, 2))
    back = turned.turned_back(quarters, HEIGHT, WIDTH)
    assert back.boxes.tolist() == [[30, 10, 50, 20]]
    assert back.landmarks[0, 0].tolist() in [[30, 10], [50, 10], [50, 20], [30, 20]]
