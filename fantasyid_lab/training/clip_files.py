"""Real clips on the disk: NAME.mp4 and its caption NAME.txt. What cannot be read is a TrainingError that says why.

A clip is what a player shows of it: its container may say that it is turned, mirrored, cut or of pixels that are not
square, and when each frame is shown.
"""

import struct
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fantasyid_core.errors import TrainingError
from fantasyid_core.io.listing import files_in
from fantasyid_core.io.text_files import read_text
from fantasyid_core.optional_import import require

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
CAPTION = ".txt"
SKEW = 0.02  # of a display matrix' entries: what is turned by less than a degree is taken for upright


def find_clips(folder: Path) -> list[Path]:
    """The clips of a folder, sorted; hidden names are none, such as the `._NAME.mp4` that macOS leaves behind."""
    return files_in(folder, SUFFIXES)


def read_caption(clip: Path) -> str:
    """The text beside a clip. Raises TrainingError."""
    path = next((file for file in files_in(clip.parent, [CAPTION]) if file.stem == clip.stem), None)
    if path is None:
        raise TrainingError(f"its caption {clip.stem}{CAPTION} is not there")
    try:
        text = read_text(path).strip()
    except (OSError, ValueError) as error:
        raise TrainingError(f"its caption {path.name} cannot be read ({error})") from error
    if not text:
        raise TrainingError(f"its caption {path.name} is empty")
    return text


def measure(clip: Path) -> tuple[int, float]:
    """How many frames a clip shows, and how many of them a second on average. Raises TrainingError."""
    timing = _read_timing(clip)
    return len(timing.positions), timing.fps


def read_frames(clip: Path, numbers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
    """The frames of these numbers in order, each (H, W, 3) uint8, as shown; no two of them are in memory at a time.

    Frame k is the one that is shown k average intervals after the first, so that a phone's clip, whose frames are not
    evenly spaced, moves at its own pace.

    Raises:
        TrainingError: the clip is damaged or ends before the last of them.
    """
    last = max(numbers)
    positions = _read_timing(clip).positions
    if last >= len(positions):
        raise TrainingError(f"it ends before frame {last}")
    wanted = defaultdict(list)
    for number in sorted(numbers):
        wanted[positions[number]].append(number)
    with _opened(clip) as stream:
        for position, frame in enumerate(stream.container.decode(stream)):
            if position in wanted:
                pixels = _as_shown(frame, stream.sample_aspect_ratio)
                for number in wanted[position]:
                    yield number, pixels
            if position == positions[last]:
                return
    raise TrainingError(f"it ends before frame {last}")


@dataclass(frozen=True)
class _Timing:
    """When a clip's frames are shown.

    Attributes:
        positions: for every average interval which of the decoded frames is shown then.
        rate: frames a second on average.
    """

    positions: list[int]
    fps: float


def _read_timing(clip: Path) -> _Timing:
    """Read from the packets alone, without decoding."""
    with _opened(clip) as stream:
        # What an edit list cuts away is still in the file, for the frames that are predicted from it.
        shown = [packet for packet in stream.container.demux(stream) if packet.size and not packet.is_discard]
        fps = float(stream.average_rate or 0)
        if len(shown) < 2 or any(packet.pts is None for packet in shown):
            return _Timing(list(range(len(shown))), fps)
        times = torch.tensor(sorted(packet.pts for packet in shown), dtype=torch.float64) * float(stream.time_base)
    grid = torch.linspace(float(times[0]), float(times[-1]), len(times), dtype=torch.float64)
    after = torch.searchsorted(times, grid).clamp(1, len(times) - 1)
    nearest = torch.where(grid - times[after - 1] <= times[after] - grid, after - 1, after)
    length = float(times[-1] - times[0])
    return _Timing(nearest.tolist(), (len(times) - 1) / length if length else fps)


def _as_shown(frame: "VideoFrame", stream_aspect: Fraction | None) -> Tensor:
    """A decoded frame → (H, W, 3) uint8 with square pixels, turned and mirrored as its display matrix says.

    Raises:
        TrainingError: the matrix turns by something else than quarters.
    """
    aspect = stream_aspect or Fraction(1)
    width, height = frame.width, frame.height
    if aspect != 1:  # enlarged, never shrunk: no pixel is lost
        width, height = round(width * max(aspect, 1)), round(height / min(aspect, 1))
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", width=width, height=height))
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)  # (x, y) is shown at (a x + c y, b x + d y)
    scale = max(map(abs, (a, b, c, d))) or 1
    a, b, c, d = (0 if abs(entry) < SKEW * scale else entry for entry in (a, b, c, d))
    if bool(a) != bool(d) or bool(b) != bool(c) or bool(a) == bool(b):
        raise TrainingError("it is shown turned by something else than quarters of a turn: save it upright")
    right, down = (a, d) if a else (c, b)
    if not a:
        pixels = pixels.transpose(0, 1)
    return pixels.flip([axis for axis, sign in ((0, down), (1, right)) if sign < 0])


@contextmanager
def _opened(clip: Path) -> Iterator["VideoStream"]:
    av = require("av", "Training on clips", names=["open", "FFmpegError"])
    try:
        with av.open(str(clip), metadata_errors="replace") as container:  # a title may be in any encoding
            stream = container.streams.best("video")
            if stream is None:
                raise TrainingError("it holds no video")
            stream.thread_type = "AUTO"
            yield stream
    except (av.FFmpegError, OSError) as error:
        raise TrainingError(f"it cannot be read as a video ({type(error).__name__})") from error
