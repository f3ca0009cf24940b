"""What FaceSim's protocols read faces with: InsightFace's buffalo_l and CurricularFace, or dlib where they are missing.

The models of InsightFace are for non-commercial research. All files are the user's: found, hashed, never downloaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..detection.insightface import open_model
from ..errors import WeightsMissingError
from ..io.hashes import sha256
from ..io.listing import files_in
from ..optional_import import require
from . import curricular_face, embedding
from .curricular_face import CurricularFace
from .facesim import ARC, CUR, FaceVectors, Picture, ReadFace, pad

DETECTOR, RECOGNISER = "det_10g.onnx", "w600k_r50.onnx"
"""Of InsightFace's buffalo_l."""
_DETECTION_SIZE = (320, 320)
_CROP = 224
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # as both protocols have them


@dataclass(frozen=True, eq=False)
class Readers:
    """What reads faces, and of which files.

    Attributes:
        read_face: picture → vectors.
        sha256: file name → hash, for the table.
        remark: what a table must say of it; empty where the protocol's own networks read.
    """

    read_face: ReadFace
    sha256: dict[str, str]
    remark: str = ""


def load(folders: Iterable[Path], device: torch.device | str = "cpu") -> Readers:
    """The protocols' own networks, as far as their files are in `folders` (sub-folders included), else dlib.

    With buffalo_l alone FaceSim-Cur is left out.

    Raises:
        WeightsError: a file is there but broken.
        PackageMissingError, WeightsMissingError: neither buffalo_l nor dlib can be used.
    """
    folders = list(folders)
    detector, recogniser = _find(folders, DETECTOR), _find(folders, RECOGNISER)
    curricular = _find(folders, curricular_face.FILE + ".safetensors", curricular_face.FILE + ".bin")
    if detector is None or recogniser is None:
        return _dlib(folders)
    network = None if curricular is None else curricular_face.load(curricular, device)
    used = [file for file in (detector, recogniser, curricular) if file is not None]
    return Readers(
        InsightFaceReader(_opened(detector), _opened(recogniser), network),
        {file.name: sha256(file) for file in used},
        "" if network else f"{CUR} was not measured: {curricular_face.FILE}.bin is not there.",
    )


class InsightFaceReader:
    """A `ReadFace` as both protocols have it: detection at 320 px, ArcFace on its own crop, CurricularFace on 224 px.

    Args:
        detector, recogniser: InsightFace's models, or what behaves like them.
        curricular: None: FaceSim-Cur is left out.
    """

    def __init__(self, detector, recogniser, curricular: CurricularFace | None):
        self._detector, self._recogniser, self._curricular = detector, recogniser, curricular
        detector.prepare(0, input_size=_DETECTION_SIZE)
        recogniser.prepare(0)
        self._align = require("insightface.utils.face_align", "FaceSim", "insightface", ["norm_crop"])
        self._common = require("insightface.app.common", "FaceSim", "insightface", ["Face"])

    def __call__(self, picture: Picture) -> FaceVectors | None:
        image = _bgr(picture)
        landmarks, arc = self._read_largest(image)
        if landmarks is None:  # the crop below is still cut from the picture without grey, as both protocols do
            padded = pad(picture)
            landmarks, arc = self._read_largest(_bgr(padded))
            if landmarks is None:
                return None
            top, left = ((a - b) // 2 for a, b in zip(padded.shape[:2], picture.shape[:2], strict=True))
            landmarks = landmarks - np.array([left, top])
        if self._curricular is None:
            return {ARC: arc}
        crop = self._align.norm_crop(image, landmark=landmarks, image_size=_CROP)
        face = torch.from_numpy(np.ascontiguousarray(crop[..., ::-1]))
        return {ARC: arc, CUR: self._curricular.embed(face[None])[0]}

    def _read_largest(self, image: np.ndarray) -> tuple[np.ndarray | None, Tensor]:
        """The largest face's landmarks (5, 2) px and ArcFace's vector (D,); None where there is none."""
        boxes, landmarks = self._detector.detect(image)
        if len(boxes) == 0:
            return None, torch.empty(0)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        largest = int(areas.argsort(kind="stable")[-1])  # of equal ones the last, as both protocols sort
        face = self._common.Face(bbox=boxes[largest, :4], kps=landmarks[largest], det_score=boxes[largest, 4])
        return landmarks[largest], torch.from_numpy(np.array(self._recogniser.get(image, face)))


def _bgr(picture: Picture) -> np.ndarray:
    return np.ascontiguousarray(picture.numpy()[..., ::-1])


def _dlib(folders: list[Path]) -> Readers:
    network = embedding.load(embedding.DLIB, folders)

    def read_face(picture: Picture) -> FaceVectors | None:
        for shown in (picture, pad(picture)):
            found = embedding.embed(network, shown[None].float() / 255)
            if found.found[0]:
                return {embedding.DLIB: found.vectors[0]}
        return None

    missing = " and ".join((DETECTOR, RECOGNISER))
    return Readers(
        read_face,
        {},
        f"InsightFace's buffalo_l ({missing}) is not there: measured with dlib, whose cosines lie far higher. These "
        "numbers compare videos with each other, not with published tables.",
    )


def _find(folders: list[Path], *names: str) -> Path | None:
    suffixes = (".onnx", ".bin", ".safetensors")
    files = {file.name: file for folder in folders for file in files_in(folder, suffixes, below=True)}
    return next((files[name] for name in names if name in files), None)


def _opened(file: Path):
    model = open_model(file, "FaceSim", _PROVIDERS)
    if model is None:
        raise WeightsMissingError(f"{file} is no model that InsightFace knows: unpack buffalo_l.zip again.")
    return model
