"""Sizes of a video and the reference image as its first frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from fantasyid_core.errors import SamplingError
from fantasyid_core.video.latents import first_frame_condition, latent_size, squeeze_to_frame


def test_the_released_size():
    assert latent_size(49, 480, 720) == (13, 60, 90)


@pytest.mark.parametrize(("frames", "height", "width"), [(0, 480, 720), (48, 480, 720), (49, 481, 720), (49, 480, 8)])
def test_impossible_sizes_are_refused(frames, height, width):
    with pytest.raises(SamplingError, match="cannot be made"):
        latent_size(frames, height, width)


def test_the_reference_is_squeezed_not_cropped(astronaut):
    frame = squeeze_to_frame(astronaut[0], 128, 192)
    assert frame.shape == (1, 128, 192, 3)
    pixels = (astronaut[0].numpy() * 255).round().astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((192, 128), Image.Resampling.LANCZOS))
    assert np.array_equal((frame[0].numpy() * 255).round().astype(np.uint8), expected)


def test_the_other_latent_frames_are_zero():
    first = torch.randn(1, 16, 1, 4, 6)
    condition = first_frame_condition(first, 5)
    assert torch.equal(condition[:, :, :1], first)
    assert not condition[:, :, 1:].any()
