"""Who acts where and when, as a first frame and as a picture."""

import torch

from fantasyid_core.dit.region import Region
from fantasyid_core.video.plan import COLOURS, arrange, box_around, draw_plan, overlaps

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0)


def test_crops_are_squeezed_into_their_boxes_and_the_first_is_on_top():
    first, second = torch.zeros(512, 512, 3), torch.ones(512, 512, 3)
    frame = arrange([first, second], [(0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5)])
    assert not frame[:256, :256].any()
    assert (frame[:256, 256:] == 1).all()
    assert (frame[256:] == 0.5).all()


def test_a_mask_s_box_is_around_what_is_white_and_of_a_black_one_the_picture():
    mask = torch.zeros(2, 64, 64)
    mask[:, 16:32, 8:16] = 1
    assert box_around(Region(mask)) == (8 / 64, 16 / 64, 8 / 64, 16 / 64)
    assert box_around(Region(mask * 0)) == (0, 0, 1, 1)
    assert box_around(Region(box=RIGHT)) == RIGHT


def test_people_overlap_who_are_in_one_place_at_one_time():
    left, right = Region(box=LEFT), Region(box=RIGHT)
    assert overlaps([left, right]) == []
    assert overlaps([left, right, Region(torch.ones(1, 8, 8))]) == [(0, 2), (1, 2)]
    assert overlaps([Region(to_second=1.0), Region(from_second=1.0)]) == []
    assert overlaps([Region(to_second=1.5), Region(from_second=1.0)]) == [(0, 1)]


def test_the_plan_shows_places_and_below_them_times():
    plan = draw_plan([Region(to_second=1.0, box=LEFT), Region(from_second=1.0, box=RIGHT)], (1, 3), 240, 160, 2.0)
    assert plan.shape[1:] == (240, 3)
    first, third = (torch.tensor(COLOURS[number]) / 255 for number in (0, 2))
    torch.testing.assert_close(plan[80, 1], first, atol=0.01, rtol=0)  # the box's edge
    torch.testing.assert_close(plan[80, 238], third, atol=0.01, rtol=0)
    bars = plan[160 + 6 + 11], plan[160 + 6 + 28 + 11]
    torch.testing.assert_close(bars[0][100], first, atol=0.01, rtol=0)
    torch.testing.assert_close(bars[1][200], third, atol=0.01, rtol=0)
    assert torch.equal(bars[0][200], bars[1][100]), "at other times nothing"
