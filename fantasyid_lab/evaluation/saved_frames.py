"""Generated frames on disk: made on one machine, measured on another, in files small enough to carry.

Frames are kept as JPEG of quality 95 without colour subsampling, which changes a pixel by about one step in 255.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.errors import FantasyIDError, SaveError
from fantasyid_core.optional_import import require

from .measure import Outputs

FILE_BYTES = 14 << 20


@dataclass(frozen=True)
class Settings:
    """How frames were made: what `cases.draw` and `Generator.videos` were asked for; `model` is the folder's name.

    `mode` is the way of computing, `seconds` the time of denoising by video, and `error` the latents' relative distance
    from the exact ones. With `guide_identity` the unconditional branch went without the identity; `references` is from
    how many photos of a person an identity was made. With `acting` every person performed as well.
    """

    people: int
    seed: int
    controls: int
    frames: int
    steps: int
    guidance: float
    scheduler: str
    model: str
    dtype: str
    device: str
    mode: str = "exact"
    seconds: float = 0.0
    error: float = 0.0
    guide_identity: bool = False
    references: int = 1
    acting: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """How to sample, as `Generator.sample` takes it."""
        names = ("frames", "steps", "guidance", "scheduler", "guide_identity")
        return {name: getattr(self, name) for name in names}


def save(folder: Path, settings: Settings, outputs: Outputs) -> None:
    """Write `settings.json` and numbered `.npz` files into `folder`, made if missing.

    Raises:
        SaveError: the disk refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {field.name: list(getattr(outputs, field.name).shape) for field in fields(Outputs)}
        content = {"settings": asdict(settings), "shapes": shapes}
        (folder / "settings.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        for old in folder.glob("frames-*.npz"):
            old.unlink()
        pictures = _jpegs(outputs)
        for number, part in enumerate(_shared_out(pictures)):
            lengths = np.array([len(picture) for picture in part])
            np.savez(folder / f"frames-{number:03}.npz", lengths=lengths, data=np.frombuffer(b"".join(part), np.uint8))
    except OSError as error:
        raise SaveError(f"The frames could not be saved to {folder}: {error}. Free some disk space.") from error


def load(folder: Path) -> tuple[Settings, Outputs]:
    """What `save` wrote.

    Raises:
        FantasyIDError: the folder is not complete or not of this kind.
    """
    Image = require("PIL.Image", "Reading frames", "pillow")
    try:
        content = json.loads((folder / "settings.json").read_text("utf-8"))
        settings, shapes = Settings(**content["settings"]), content["shapes"]
        pictures = []
        for file in sorted(folder.glob("frames-*.npz")):
            with np.load(file, allow_pickle=False) as part:
                ends = part["lengths"].cumsum()
                data = part["data"].tobytes()
            starts = [0, *ends[:-1].tolist()]
            pictures += [
                np.asarray(Image.open(io.BytesIO(data[a:b])).convert("RGB"))
                for a, b in zip(starts, ends.tolist(), strict=True)
            ]
        frames, videos = iter(pictures), {}
        for field in fields(Outputs):
            if field.name not in shapes and field.default_factory is not MISSING:  # from before there were such videos
                continue
            count = int(np.prod(shapes[field.name][:2]))
            chosen = [next(frames) for _ in range(count)]
            videos[field.name] = torch.from_numpy(np.array(chosen, np.uint8)).reshape(shapes[field.name])
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise FantasyIDError(
            f"{folder} does not hold frames of this evaluation ({type(error).__name__}: {error}). Make them with "
            "--save-frames, and copy settings.json and every frames-*.npz."
        ) from error
    return settings, Outputs(**videos)


def _jpegs(outputs: Outputs) -> Iterator[bytes]:
    Image = require("PIL.Image", "Keeping frames", "pillow")
    for field in fields(Outputs):
        videos: Tensor = getattr(outputs, field.name)
        for frame in videos.flatten(0, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
            yield file.getvalue()


def _shared_out(pictures: Iterator[bytes]) -> Iterator[list[bytes]]:
    part, size = [], 0
    for picture in pictures:
        if part and size + len(picture) > FILE_BYTES:
            yield part
            part, size = [], 0
        part.append(picture)
        size += len(picture)
    if part:
        yield part
