"""Face → mesh: DECA's regressor and FLAME's decoder on the photo, or a vertex file that was made elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import deca, flame
from .detection import DetectedFace
from .errors import MeshError, WeightsMissingError
from .mesh_files import read_ply

AS_RELEASED, SHAPE_ONLY = MODES = ("as released", "shape only")
DECA_NAMES = ("deca_model.tar", "deca_model.safetensors")
FLAME_NAMES = ("generic_model.pkl", "generic_model.safetensors")
DECA_SOURCE = (
    "DECA is licensed for non-commercial research only: get deca_model.tar as https://github.com/yfeng95/DECA says, "
    "accept the licence and copy it there."
)
INSTEAD = "Without these files, load the face's vertices from a .ply file instead."


@dataclass(frozen=True, eq=False)
class FaceMesh:
    """A face's surface.

    Attributes:
        vertices: (V, 3) float32 in FLAME's metric space: metres, y up, z out of the face.
        faces: (F, 3) int64 triangles, or `None` where the file has none.
        shape_code: (100,) FLAME's shape, or `None` where the mesh comes from a file.
    """

    vertices: Tensor
    faces: Tensor | None = None
    shape_code: Tensor | None = None


def from_file(path: str | Path, expected_vertices: int | None = None) -> FaceMesh:
    """Read a mesh of the model's topology from a `.ply` file.

    Args:
        expected_vertices: of the topology (FLAME: 5023); `None` accepts any, the spiral network checks again.

    Raises:
        MeshError: the file is not readable, not a sound mesh, or has another number of vertices.
    """
    vertices, faces = read_ply(path)
    if expected_vertices not in (None, len(vertices)):
        raise MeshError(
            f"{path} has {len(vertices)} vertices, expected {expected_vertices}: use the mesh of a face model of that "
            "topology (FLAME has 5023), unaltered. A scan or a decimated mesh cannot be used."
        )
    return FaceMesh(vertices, faces)


@torch.no_grad()
def reconstruct(face: DetectedFace, regressor: deca.Regressor, model: flame.Flame, mode: str = AS_RELEASED) -> FaceMesh:
    """Estimate the mesh of the face in a photo. Photo, regressor and model lie on one device, the mesh does too.

    Args:
        mode: "as released": shape, expression and pose; "shape only": the shape alone, as in the paper (section 3.2).
            Either way the regressor sees the whole photo squeezed to a square, as released.

    Raises:
        MeshError: there is no such mode, or the mesh came out with values that are not finite.
    """
    if mode not in MODES:
        raise MeshError(f"There is no reconstruction mode '{mode}'; choose one of: {', '.join(MODES)}.")
    code = deca.split(regressor(squeeze(face.image)))
    pose_too = (code.expression, code.pose) if mode == AS_RELEASED else ()
    vertices = model.decode(code.shape, *pose_too)[0]
    if not vertices.isfinite().all():
        raise MeshError("The face's mesh came out with values that are not finite: the weights of DECA are damaged.")
    return FaceMesh(vertices, model.faces, code.shape[0])


def squeeze(photo: Tensor) -> Tensor:
    """(H, W, 3) in 0…1 → (1, 3, 224, 224), whatever the aspect ratio.

    Pillow's antialiased bilinear, which the release used: width first, then height, each rounded to 8 bits. (Newer
    Pillows take the height first where that is faster, which changes some pixels by one step.)
    """
    x = photo.movedim(-1, 0)[None].float() * 255
    for size in ((x.shape[2], deca.SIZE), (deca.SIZE, deca.SIZE)):
        x = (F.interpolate(x, size, mode="bilinear", antialias=True) + 0.5).floor().clamp(0, 255)
    return x / 255


def find_files(*folders: Path) -> tuple[Path, Path]:
    """The files of DECA and of FLAME in the first of the `face_model/` folders that has each.

    Raises:
        WeightsMissingError: names what is missing, where it was looked for, where to get it and under which licence.
    """
    found = [_first(folders, names) for names in (DECA_NAMES, FLAME_NAMES)]
    if all(found):
        return found[0], found[1]
    problems = [
        f"{' or '.join(str(folder / names[0]) for folder in folders)} is not there. {source}"
        for path, names, source in zip(found, (DECA_NAMES, FLAME_NAMES), (DECA_SOURCE, flame.SOURCE), strict=True)
        if path is None
    ]
    raise WeightsMissingError(" ".join([*problems, INSTEAD]))


def _first(folders: tuple[Path, ...], names: tuple[str, ...]) -> Path | None:
    paths = (folder / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)
