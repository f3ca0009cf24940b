"""Real photos that need no download, with the faces that a person sees in them (labelled by eye, 24 November 2026).

They lie in installed packages: scikit-image, insightface, the host's workflow templates; one in the folder that
FANTASYID_PARITY names. Packages of other versions may hold other pictures: those are left out. Of moving pictures the
middle frame is meant.
"""

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class LabelledPhoto:
    """A picture and its faces.

    Attributes:
        name: package and file, for a table; path: where it lies.
        people: (x, y) px inside every clearly visible face of a person of at least 24 px; each must be found.
        others: (x, y) px in faces of drawn, sculpted or toy figures and animals, or small ones; may be found or not.
    """

    name: str
    path: Path
    people: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, int], ...] = ()

    def read(self) -> Tensor:
        """(H, W, 3) float32 RGB 0…1."""
        from PIL import Image

        with Image.open(self.path) as file:
            if (frames := getattr(file, "n_frames", 1)) > 1:
                file.seek(frames // 2)
            return torch.from_numpy(np.array(file.convert("RGB"))).float() / 255


def photos() -> Iterator[LabelledPhoto]:
    """All that are installed here."""
    for label in json.loads((Path(__file__).parent / "labelled_faces.json").read_text("utf-8")):
        package, _, file = label["file"].partition("/")
        if package == "parity":
            full = os.environ.get("FANTASYID_PARITY")
            folder = Path(full) if full else None
        else:
            spec = importlib.util.find_spec(package)
            folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or not (folder / file).is_file():
            continue
        if label.get("bytes") not in (None, (folder / file).stat().st_size):  # another picture of that name
            continue
        people, others = (tuple(map(tuple, label.get(kind, ()))) for kind in ("people", "others"))
        name = f"{package.removeprefix('comfyui_workflow_templates_media_')}: {Path(file).stem}"
        yield LabelledPhoto(name, folder / file, people, others)


def count_errors(label: LabelledPhoto, boxes: list[list[float]], scores: list[float]) -> tuple[int, int]:
    """How many people were missed, and how many boxes with a score above 0.8 are on no face."""

    def holds(box: list[float], point: tuple[int, int]) -> bool:
        x0, y0, x1, y1 = box
        return x0 < point[0] < x1 and y0 < point[1] < y1

    missed = sum(not any(holds(box, point) for box in boxes) for point in label.people)
    certain = [box for box, score in zip(boxes, scores, strict=True) if score > 0.8]
    false = sum(not any(holds(box, point) for point in label.people + label.others) for box in certain)
    return missed, false
