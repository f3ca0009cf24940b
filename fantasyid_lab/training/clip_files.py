"""Real clips on the disk: NAME.mp4 and its caption NAME.txt. What cannot be read is a TrainingError that says why."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.errors import TrainingError
from fantasyid_core.optional_import import require


def read_caption(clip: Path) -> str:
    """The text beside a clip. Raises TrainingError."""
    path = clip.with_suffix(".txt")
    try:
        text = path.read_text("utf-8").strip()
    except FileNotFoundError as error:
        raise TrainingError(f"its caption {path.name} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"its caption {path.name} cannot be read ({error})") from error
    if not text:
        raise TrainingError(f"its caption {path.name} is empty")
    return text


def measure(clip: Path) -> tuple[int, float]:
    """How many frames a clip has, and how many of them it shows a second. Raises TrainingError."""
    with _opened(clip) as stream:
        count = stream.frames or sum(packet.size > 0 for packet in stream.container.demux(stream))
        return count, float(stream.average_rate or 0)


def read_frames(clip: Path, numbers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
    """The frames of these numbers in order, each (H, W, 3) uint8; no two of them are in memory at a time.

    Raises:
        TrainingError: the clip is damaged or ends before the last of them.
    """
    last = max(numbers)
    with _opened(clip) as stream:
        for number, frame in enumerate(stream.container.decode(stream)):
            if number in numbers:
                yield number, torch.from_numpy(frame.to_ndarray(format="rgb24"))
            if number == last:
                return
    raise TrainingError(f"it ends before frame {last}")


@contextmanager
def _opened(clip: Path) -> Iterator:
    av = require("av", "Training on clips")
    try:
        with av.open(str(clip)) as container:
            if not container.streams.video:
                raise TrainingError("it holds no video")
            container.streams.video[0].thread_type = "AUTO"
            yield container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise TrainingError(f"it cannot be read as a video ({type(error).__name__})") from error
