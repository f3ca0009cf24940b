"""InsightFace's detectors (SCRFD) behind the same interface as YuNet, where the package and its models are installed.

The package (MIT) loads and runs the network on onnxruntime; its models are for non-commercial research and are never
downloaded from here. Anything that goes wrong says what to put where.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError, WeightsMissingError, cause
from ..io.formats import refuse_foreign
from ..io.listing import files_in, is_hidden
from ..optional_import import require
from .detections import Detections

log = logging.getLogger(__name__)

# The detector's file: det_10g.onnx in buffalo_l, scrfd_10g_bnkps.onnx in antelopev2.
_BEGINNINGS = ("scrfd", "det_")
_PREFERRED = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider")


def packages(*roots: Path) -> list[str]:
    """Names of the model packages in `models/insightface` folders: those with a detector in or below them."""
    names = {folder.name for root in roots for folder in _folders(root) if next(_detectors(folder), None)}
    return sorted(names)


def find_detector(name: str, *roots: Path) -> Path:
    """The detector's file of a package such as "buffalo_l" or "antelopev2".

    It is looked for in `<root>/models/<name>` and `<root>/<name>`, and below them, because zip files that were unpacked
    into a folder of their own name leave `antelopev2/antelopev2/*.onnx`.

    Raises:
        WeightsMissingError: it is not there.
    """
    for root in roots:
        for folder in _folders(root):
            if folder.name == name and (file := next(_detectors(folder), None)):
                return file
    places = " or ".join(f"{root / 'models'}/{name}" for root in roots) or "models/insightface"
    raise WeightsMissingError(
        f"InsightFace's detector of '{name}' is not there: expected det_*.onnx or scrfd_*.onnx in {places}. Unpack "
        f"{name}.zip from InsightFace's releases there (its models are for non-commercial research), or choose "
        "another detector: YuNet needs no file."
    )


def _folders(root: Path) -> Iterator[Path]:
    for base in (root / "models", root):
        if base.is_dir():
            entries = (entry for entry in sorted(base.iterdir()) if not is_hidden(entry.name))
            yield from (entry for entry in entries if entry.is_dir() and entry.name != "models")


def _detectors(folder: Path) -> Iterator[Path]:
    files = files_in(folder, [".onnx"], below=True)
    for beginning in _BEGINNINGS:
        yield from (file for file in files if file.name.lower().startswith(beginning))


def open_model(file: Path, purpose: str, preferred: Sequence[str] = _PREFERRED):
    """A model of InsightFace's, as its package opens it, on the first of onnxruntime's providers that works.

    Args:
        purpose: what needs it, as errors say it.
        preferred: providers, the best first; the CPU is always there.

    Raises:
        PackageMissingError: insightface or what it needs is missing or broken.
        WeightsError: no model that it can load.
    """
    zoo = require("insightface.model_zoo.model_zoo", purpose, "insightface onnxruntime", ["get_model"])
    runtime = require("onnxruntime", purpose, names=["get_available_providers"])
    refuse_foreign(file)
    there = runtime.get_available_providers()
    failed: Exception = RuntimeError("onnxruntime has no device to run it on")
    for provider in (name for name in preferred if name in there):
        try:
            return zoo.get_model(str(file), providers=list(dict.fromkeys((provider, "CPUExecutionProvider"))))
        except Exception as error:  # onnxruntime raises its own kinds, without a common base
            failed = error
    raise WeightsError(
        f"InsightFace's '{file.name}' could not be loaded ({type(failed).__name__}: {cause(failed)}). It may be "
        f"truncated: unpack its package into {file.parent} again."
    ) from failed


@lru_cache(maxsize=2)
def load(file: Path) -> "InsightDetector":
    """The detector of a file, on the best onnxruntime provider that works: CUDA, CoreML, else the CPU.

    Raises:
        PackageMissingError: insightface or what it needs is missing or broken.
        WeightsError: not a face detector with landmarks.
    """
    model = open_model(file, "The InsightFace detector")
    if not getattr(model, "use_kps", False):
        raise WeightsError(
            f"'{file}' is not a face detector with five landmarks. Put the whole package there (buffalo_l, antelopev2)."
        )
    used = model.session.get_providers()[0]
    if used == "CPUExecutionProvider" and torch.cuda.is_available():
        log.info("FantasyID: InsightFace runs on the CPU; onnxruntime-gpu is not installed or does not work here.")
    return InsightDetector(model)


class InsightDetector:
    """A `Detector`, at the size that the pictures have."""

    def __init__(self, model):
        self._model = model

    def __call__(self, images: Tensor, min_score: float = 0.5) -> list[Detections]:
        """(B, H, W, 3) float RGB 0…1 → of each picture, on the CPU."""
        pictures = (images.flip(-1) * 255).round().to(torch.uint8).cpu().numpy()
        width, height = images.shape[2], images.shape[1]
        size = (width + -width % 32, height + -height % 32)
        return [self._one(np.ascontiguousarray(picture), size, min_score) for picture in pictures]

    def _one(self, picture: np.ndarray, size: tuple[int, int], min_score: float) -> Detections:
        # Padded here: the package would stretch the picture to the multiple of 32.
        padded = np.zeros((size[1], size[0], 3), np.uint8)
        padded[: picture.shape[0], : picture.shape[1]] = picture
        found, landmarks = self._model.detect(padded, input_size=size, det_thresh=min_score)
        boxes, scores, points = found[:, :4], found[:, 4], landmarks.reshape(len(found), 5, 2)
        return Detections(*(torch.from_numpy(x.astype(np.float32)) for x in (boxes, scores, points)))
