"""Draw docs/pictures/dense_landmarks.jpg: `python -m tools.assets.dense_faces`.

Eight faces with their 478 points, and the meshes that the dense fit lays over them. Only pictures that are in this
repository and may be shown: NASA's portrait of an astronaut, and people who do not exist.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image, ImageDraw
from torch import Tensor

from fantasyid_core.detection.alignment import warp
from fantasyid_core.detection.faces import DetectedFace
from fantasyid_core.detection.selection import find_face
from fantasyid_core.images import load_photo, to_pil
from fantasyid_core.reconstruction import flame, render
from fantasyid_core.reconstruction.face_mesh import from_dense_landmarks

from ..environment import ROOT
from .dense_points import MODEL
from .draw_example_photos import PHOTOS

PICTURE = ROOT / "docs" / "pictures" / "dense_landmarks.jpg"
_SIDE, _COLUMNS = 200, 4


def photos() -> Iterator[Tensor]:
    """(1, H, W, 3) float 0…1."""
    assets = ROOT / "workflows" / "assets"
    for path in (assets / "portrait.jpg", assets / "synthetic.jpg", *sorted(PHOTOS.glob("*.jpg"))):
        yield load_photo(path)


def drawn(face: DetectedFace, model: flame.Flame) -> tuple[Image.Image, Image.Image]:
    """The face with its points, and with its mesh."""
    assert face.dense_landmarks is not None
    mesh = from_dense_landmarks(face, model)
    assert mesh.in_photo is not None
    to_crop = face.to_crop * (_SIDE / 512)
    points = to_pil(warp(face.image, to_crop, _SIDE))
    draw = ImageDraw.Draw(points)
    for x, y in (face.dense_landmarks[:, :2] @ to_crop[:, :2].T + to_crop[:, 2]).tolist():
        draw.point((x, y), fill=(80, 255, 80))
    overlay = warp(render.overlay(face.image, mesh.in_photo, mesh.faces), to_crop, _SIDE)
    return points, to_pil(overlay)


def main() -> None:
    """Write the picture."""
    model = flame.load(MODEL)
    pairs = [drawn(find_face(photo).face, model) for photo in photos()]
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, 2 * len(pairs) // _COLUMNS * _SIDE))
    for i, pair in enumerate(pairs):
        for row, picture in enumerate(pair):
            sheet.paste(picture, (_SIDE * (i % _COLUMNS), _SIDE * (2 * (i // _COLUMNS) + row)))
    sheet.save(PICTURE, quality=85, optimize=True)


if __name__ == "__main__":
    main()
