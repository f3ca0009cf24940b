"""Faces of photo files as JSON: `python -m fantasyid_core.detection FILE…`."""

import argparse
import json
import sys
from pathlib import Path

import torch

from ..errors import FantasyIDError
from ..images import load_photo
from .faces import DetectedFace, detect


def main(arguments: list[str] | None = None) -> int:
    """Print one line per photo; 1 if any could not be read, else 0. A photo without a face is not an error."""
    parser = argparse.ArgumentParser(prog="python -m fantasyid_core.detection", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--min-score", type=float, default=0.6, help="leave out what is less certain, 0…1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    failed = False
    for file in options.files:
        line = _line(file, options.min_score, options.device)
        failed |= "error" in line
        print(json.dumps(line), flush=True)
    return int(failed)


def _line(file: Path, min_score: float, device: str) -> dict:
    try:
        photo = load_photo(file)
        faces = detect(photo, min_score=min_score, device=device)
    except FantasyIDError as error:
        return {"file": str(file), "error": str(error)}
    height, width = photo.shape[:2]
    return {"file": str(file), "width": width, "height": height, "faces": [_numbers(face) for face in faces]}


def _numbers(face: DetectedFace) -> dict:
    """Everything but the pictures: px and degrees to a tenth, scores to a thousandth."""
    return {
        "box": [round(value, 1) for value in face.box.tolist()],
        "landmarks": [[round(x, 1), round(y, 1)] for x, y in face.landmarks.tolist()],
        "pose": {angle: round(getattr(face.pose, angle), 1) for angle in ("yaw", "pitch", "roll")},
        "score": round(face.score, 3),
        "sharpness": round(face.sharpness, 3),
        "occlusion": round(face.occlusion, 3),
        "quality": round(face.quality, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
