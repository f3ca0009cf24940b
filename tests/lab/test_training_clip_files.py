"""Clips as a player shows them: turned, mirrored, cut, oblong, unevenly spaced; captions of other programs."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

import av

from fantasyid_core.errors import TrainingError
from fantasyid_lab.training.clip_files import find_clips, measure, read_caption, read_frames
from tools.environment import ROOT

FAULTS = ROOT / "tests" / "fixtures" / "faults"
ONE = 1 << 16
# As players show it, of a picture of which the top left quarter is white: where that quarter then is (row, column).
QUARTERS = {
    "upright": ((1, 0, 0, 1), (0, 0)),
    "mirrored": ((-1, 0, 0, 1), (0, 1)),
    "upside down": ((-1, 0, 0, -1), (1, 1)),
    "flipped": ((1, 0, 0, -1), (1, 0)),
    "a quarter clockwise": ((0, 1, -1, 0), (0, 1)),
    "a quarter counterclockwise": ((0, -1, 1, 0), (1, 0)),
    "transposed": ((0, 1, 1, 0), (0, 0)),
    "transposed the other way": ((0, -1, -1, 0), (1, 1)),
}


def write(path: Path, grey: Sequence[float], times: Sequence[int] | None = None, aspect: float = 1) -> None:
    """An .mp4 of 64 × 32 px, one frame for each brightness 0…1 of its top left quarter, shown at `times`, 1/8 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 32, "yuv420p", 4_000_000
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for number, level in enumerate(grey):
            pixels = torch.zeros(32, 64, 3, dtype=torch.uint8)
            pixels[:16, :32] = round(255 * level)
            frame = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24")
            frame.pts = times[number] if times else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def set_display_matrix(path: Path, entries: Sequence[float]) -> None:
    """Write `a, b, c, d` into an .mp4's track header."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(ONE * entry) for entry in entries)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def all_frames(path: Path) -> torch.Tensor:
    """(T, H, W, 3) float."""
    return torch.stack([frame for _, frame in read_frames(path, range(measure(path)[0]))]).float()


def levels(path: Path) -> list[float]:
    """The brightness of every frame's top left quarter, as `write` was given it, to the nearest tenth."""
    return [round(float(frame[4:12, 4:28].mean()) / 255, 1) for frame in all_frames(path)]


def test_a_phone_s_clip_is_the_one_that_it_shows():
    turned, upright = all_frames(FAULTS / "phone.mp4"), all_frames(FAULTS / "upright.mp4")
    assert turned.shape == upright.shape == (25, 160, 160, 3)
    assert (turned - upright).abs().mean() < 2, "what compression does"


@pytest.mark.parametrize("name", QUARTERS)
def test_every_quarter_and_mirror_of_a_display_matrix(name: str, tmp_path: Path):
    entries, (row, column) = QUARTERS[name]
    write(tmp_path / "0.mp4", [1.0])
    set_display_matrix(tmp_path / "0.mp4", entries)
    (frame,) = all_frames(tmp_path / "0.mp4")
    assert frame.shape == ((32, 64, 3) if entries[0] else (64, 32, 3))
    height, width = (side // 2 for side in frame.shape[:2])
    means = frame.mean(-1).unflatten(1, (2, width)).unflatten(0, (2, height)).mean((1, 3))
    white = torch.zeros(2, 2)
    white[row, column] = 255
    assert (means - white).abs().max() < 8


def test_what_is_turned_by_less_than_a_quarter_is_refused_with_a_cure(tmp_path: Path):
    write(tmp_path / "0.mp4", [1.0])
    set_display_matrix(tmp_path / "0.mp4", (0.8, 0.6, -0.6, 0.8))
    with pytest.raises(TrainingError, match="save it upright"):
        all_frames(tmp_path / "0.mp4")


def test_an_edit_list_s_cut_is_honoured():
    with av.open(str(FAULTS / "trimmed.mp4"), options={"ignore_editlist": "1"}) as container:
        stored = [torch.from_numpy(frame.to_ndarray(format="rgb24")).float() for frame in container.decode(video=0)]
    shown = all_frames(FAULTS / "trimmed.mp4")
    assert measure(FAULTS / "trimmed.mp4") == (25, 8.0)
    assert len(stored) == 65
    first = min(range(len(stored)), key=lambda i: float((stored[i] - shown[0]).abs().mean()))
    assert first > 0
    assert torch.equal(shown, torch.stack(stored[first : first + 25]))


def test_oblong_pixels_become_square(tmp_path: Path):
    for aspect, shape in ((2, (32, 128, 3)), (0.5, (64, 64, 3)), (1, (32, 64, 3))):
        write(tmp_path / "0.mp4", [1.0], aspect=aspect)
        (frame,) = all_frames(tmp_path / "0.mp4")
        assert frame.shape == shape
        assert frame[2 : shape[0] // 2 - 2, 2 : shape[1] // 2 - 2].min() > 247
        assert frame[shape[0] // 2 + 2 :].max() < 8


def test_frames_are_where_their_time_is(tmp_path: Path):
    """A camera that shows fewer frames in the dark: its clip moves at its own pace."""
    write(tmp_path / "0.mp4", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], times=[0, 1, 2, 3, 4, 10])
    assert measure(tmp_path / "0.mp4") == (6, 4.0)
    assert levels(tmp_path / "0.mp4") == [0.0, 0.4, 0.8, 0.8, 1.0, 1.0]


def test_a_late_start_changes_nothing(tmp_path: Path):
    write(tmp_path / "0.mp4", [0.0, 0.5, 1.0], times=[40, 41, 42])
    assert measure(tmp_path / "0.mp4") == (3, 8.0)
    assert levels(tmp_path / "0.mp4") == [0.0, 0.5, 1.0]


def test_names_are_seen_in_whatever_case_and_hidden_ones_are_not(tmp_path: Path):
    for name in ("a.mp4", "B.MP4", "c.MOV", "._a.mp4", "._B.MP4", ".mp4", "notes.txt", "d.TXT"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in find_clips(tmp_path)] == ["B.MP4", "a.mp4", "c.MOV"]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_have_no_byte_order_mark(name: str, encoding: str, tmp_path: Path):
    (tmp_path / name).write_text("Zoë smiles.\r\n", encoding)
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7")
    assert read_caption(tmp_path / "a.mp4") == "Zoë smiles."


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_captions_in_other_encodings_are_refused_with_a_cure(encoding: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text("Zoë smiles.", encoding)
    with pytest.raises(TrainingError, match=r"a\.txt cannot be read .*save it with the encoding UTF-8"):
        read_caption(tmp_path / "a.mp4")


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path):
    path = tmp_path / "titled.mp4"
    write(path, [0.0, 1.0])
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1
    path.write_bytes(content.replace(b"Lavf", b"L\x86vf"))  # the name of the program that wrote it
    assert measure(path)[0] == 2
