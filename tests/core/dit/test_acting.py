"""A mesh that moves, in a video's latent frames."""

import pytest
import torch

from fantasyid_core.dit.acting import per_latent_frame
from fantasyid_core.errors import MeshError
from fantasyid_core.reconstruction.animation import Animation


def turning(frames: int, fps: float) -> Animation:
    """A face of one vertex that turns by 10° and opens its mouth by 1 a second."""
    seconds = torch.arange(frames) / fps
    pose = torch.stack([10 * seconds, 0 * seconds, 0 * seconds], 1)
    ways = torch.tensor([[[0.0], [-0.01], [0.0]]])
    return Animation(torch.tensor([[0.0, 0.0, 0.1]]), None, ways, seconds[:, None], pose, torch.zeros(3), fps)


@pytest.mark.parametrize("fps", [8.0, 24.0, 25.0, 29.97, 5.0])
def test_a_video_of_8_frames_a_second_shows_each_moment_when_it_was(fps: float):
    at_8 = turning(round(2 * fps) + 1, fps).resampled(8)
    count = int(round(2 * fps) / fps * 8 + 1e-6) + 1
    assert len(at_8.weights) == len(at_8.pose) == count
    torch.testing.assert_close(at_8.weights[:, 0], torch.arange(count) / 8)
    torch.testing.assert_close(at_8.pose[:, 0], torch.arange(count) * 10 / 8)


def test_a_latent_frame_is_the_mean_of_its_four_frames_and_the_first_stands_alone():
    acting = per_latent_frame(turning(9, 8.0))
    torch.testing.assert_close(acting.weights[:, 0], torch.tensor([0.0, 2.5, 6.5]) / 8)
    torch.testing.assert_close(acting.pose[:, 0], torch.tensor([0.0, 25.0, 65.0]) / 8)
    assert acting.vertices().shape == (3, 1, 3)
    held = per_latent_frame(turning(7, 8.0))
    torch.testing.assert_close(held.weights[:, 0], torch.tensor([0.0, 2.5, 5.75]) / 8)
    assert len(per_latent_frame(turning(1, 8.0)).weights) == 1


def test_an_animation_without_a_rate_is_refused():
    with pytest.raises(MeshError, match="above 0 frames per second; got 0"):
        turning(3, 8.0).resampled(0)
