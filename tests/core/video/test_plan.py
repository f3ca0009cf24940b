"""Who acts where and when, as a first frame and as a picture."""

import torch

from fantasyid_core.video.plan import arrange


def test_crops_are_squeezed_into_their_boxes_and_the_first_is_on_top():
    first, second = torch.zeros(512, 512, 3), torch.ones(512, 512, 3)
    frame = arrange([first, second], [(0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5)])
    assert not frame[:256, :256].any()
    assert (frame[:256, 256:] == 1).all()
    assert (frame[256:] == 0.5).all()
