"""A face cut out of a video and put back: steady, soft, and nothing else touched."""

import pytest
import torch

from fantasyid_core.detection.face_track import FaceTrack
from fantasyid_core.errors import ImageError
from fantasyid_core.video.face_clip import cut_out, paste

FPS, SIZE = 8.0, 96


def video(frames: int = 6, height: int = 160, width: int = 200) -> torch.Tensor:
    """Smooth waves of colour that move."""
    y, x = torch.meshgrid(torch.arange(height) / 40, torch.arange(width) / 40, indexing="ij")
    return (
        torch.stack([torch.stack([(x + t / 9).sin(), (y - t / 7).cos(), (x * y / 3).sin()], -1) for t in range(frames)])
        * 0.3
        + 0.5
    )


def track(frames: int = 6, x: float = 90, y: float = 80, size: float = 50, missing: tuple[int, ...] = ()) -> FaceTrack:
    """A round face that wanders to the right."""
    angle = torch.arange(478) * 2 * torch.pi / 478
    ring = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1) * size / 2
    points = torch.stack([ring + torch.tensor([x + 2 * t, y, 0.0]) for t in range(frames)])
    present = torch.tensor([t not in missing for t in range(frames)])
    points[~present] = torch.nan
    return FaceTrack(points, present.float(), present, FPS)


def test_the_clip_is_of_the_asked_size_and_length_with_the_face_in_the_middle():
    clip = cut_out(video(), track(), SIZE, 2 * SIZE)
    assert clip.frames.shape == (9, SIZE, 2 * SIZE, 3)
    assert torch.equal(clip.frames[5], clip.frames[8])
    row, column = (clip.mask[3] > 0.5).nonzero().float().mean(0).tolist()
    assert abs(row - SIZE / 2) < 2
    assert abs(column - SIZE) < 4
    assert clip.mask[:, [0, -1]].max() == 0
    assert clip.mask[:, :, [0, -1]].max() == 0


@pytest.mark.parametrize("size", [48, 96, 208])
def test_put_back_as_it_was_cut_the_video_stays(size):
    frames = video()
    clip = cut_out(frames, track(), size, size)
    pasted, mask = paste(frames, clip, clip.frames)
    assert (pasted - frames).abs().max() < 0.02
    assert torch.equal(pasted[mask == 0], frames[mask == 0])
    assert mask.max() > 0.99


def test_a_clip_drawn_larger_lands_in_the_same_place():
    frames = video()
    clip = cut_out(frames, track(), SIZE, SIZE)
    larger = torch.nn.functional.interpolate(clip.frames.movedim(-1, 1), scale_factor=2, mode="bilinear").movedim(1, -1)
    pasted, _ = paste(frames, clip, larger)
    assert (pasted - frames).abs().max() < 0.02


def test_outside_of_the_mask_every_bit_stays_and_inside_the_new_face_is():
    frames = video()
    clip = cut_out(frames, track(), SIZE, SIZE)
    pasted, mask = paste(frames, clip, torch.zeros_like(clip.frames), match_colours=0.0)
    assert torch.equal(pasted[mask == 0], frames[mask == 0])
    assert (mask == 0).float().mean() > 0.5
    assert pasted[mask > 0.999].abs().max() < 1e-3


def test_frames_without_the_face_stay_and_the_cut_waits_for_it():
    frames = video()
    clip = cut_out(frames, track(missing=(0, 3)), SIZE, SIZE)
    pasted, mask = paste(frames, clip, torch.ones_like(clip.frames))
    assert torch.equal(pasted[[0, 3]], frames[[0, 3]])
    assert not mask[[0, 3]].any()
    assert clip.present.tolist() == [False, True, True, False, True, True]


def test_a_face_that_shakes_is_cut_steadily():
    shaken = track(24)
    shaken.points[..., :2] += torch.randn(24, 1, 2, generator=torch.Generator().manual_seed(0))
    clip = cut_out(video(24), shaken, SIZE, SIZE)
    wanted = cut_out(video(24), track(24), SIZE, SIZE)
    off = ((clip.to_clip - wanted.to_clip)[:, 1:] / wanted.to_clip[:, :1]).abs()
    assert off.mean() < 0.5  # px of the video, where the face shakes by 0.8
    torch.testing.assert_close(
        wanted.to_clip[:, 1].diff(), wanted.to_clip[:1, 0] * -2 * torch.ones(23), atol=0.02, rtol=0
    )


def test_nothing_is_averaged_over_a_cut():
    first, second = track(4, x=40), track(4, x=150)
    both = FaceTrack(torch.cat([first.points, second.points]), torch.ones(8), torch.ones(8, dtype=torch.bool), FPS)
    clip = cut_out(video(8), both, SIZE, SIZE)
    alone = cut_out(video(4), first, SIZE, SIZE)
    torch.testing.assert_close(clip.to_clip[:4], alone.to_clip)


def test_a_tint_is_taken_out():
    frames = video()
    clip = cut_out(frames, track(), SIZE, SIZE)
    tinted = clip.frames * 0.9 + torch.tensor([0.1, 0.0, -0.05])
    plain, matched = (paste(frames, clip, tinted, match_colours=amount)[0] for amount in (0.0, 1.0))
    assert (matched - frames).abs().mean() < 0.5 * (plain - frames).abs().mean()


def test_one_frame_and_a_face_beyond_the_edge_work():
    frames = video(1)
    clip = cut_out(frames, track(1, x=5, y=5), SIZE, SIZE)
    pasted, mask = paste(frames, clip, clip.frames)
    assert clip.frames.shape[0] == 1
    assert (pasted - frames).abs().max() < 0.02
    assert mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda frames, drawn: (frames[:4], drawn),
            "cut out of 6 frames of 200 × 160 pixels, but .* has 4",
        ),
        (lambda frames, drawn: (frames[:, :80], drawn), "has 6 of 200 × 80"),
        (lambda frames, drawn: (frames, drawn[:5]), "The drawn clip has 5 frames, but the face was cut out of 6"),
        (lambda frames, drawn: (frames, drawn * torch.nan), "no numbers"),
    ],
)
def test_what_does_not_belong_together_is_named(change, message):
    frames = video()
    clip = cut_out(frames, track(), SIZE, SIZE)
    with pytest.raises(ImageError, match=message):
        paste(*change(frames, clip.frames)[:1], clip, change(frames, clip.frames)[1])
    with pytest.raises(ImageError, match="followed in 6"):
        cut_out(frames[:3], track(), SIZE, SIZE)
