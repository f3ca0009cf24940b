"""Face → mesh: DECA's regressor and FLAME's decoder on the photo, or a vertex file that was made elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import deca, flame
from .deca_input import WHOLE_PHOTO, prepare, to_photo
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
        in_photo: (V, 3) float32, the same vertices as the photo shows them, with its pose and expression: x and y in px
            of the photo (integers are pixel centres), z in px, growing away from the viewer; `None` where the mesh
            comes from a file.
    """

    vertices: Tensor
    faces: Tensor | None = None
    shape_code: Tensor | None = None
    in_photo: Tensor | None = None


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
def reconstruct(
    face: DetectedFace,
    regressor: deca.Regressor,
    model: flame.Flame,
    mode: str = AS_RELEASED,
    look_at: str = WHOLE_PHOTO,
) -> FaceMesh:
    """Estimate the mesh of the face in a photo. Photo, regressor and model lie on one device, the mesh does too.

    Args:
        mode: "as released": shape, expression and pose; "shape only": the shape alone, as in the paper (section 3.2).
            `in_photo` has expression and pose either way.
        look_at: what the regressor sees, `deca_input.INPUTS`: the whole photo squeezed to a square, as released, or
            DECA's own crop of the face.

    Raises:
        MeshError: there is no such mode or input, or the mesh came out with values that are not finite.
    """
    if mode not in MODES:
        raise MeshError(f"There is no reconstruction mode '{mode}'; choose one of: {', '.join(MODES)}.")
    seen = prepare(face, look_at)
    code = deca.split(regressor(seen.image))
    posed = model.decode(code.shape, code.expression, code.pose)
    vertices = posed if mode == AS_RELEASED else model.decode(code.shape)
    if not (vertices.isfinite().all() and posed.isfinite().all()):
        raise MeshError("The face's mesh came out with values that are not finite: the weights of DECA are damaged.")
    in_photo = to_photo(deca.project(posed, code.camera)[0], seen.to_photo)
    return FaceMesh(vertices[0], model.faces, code.shape[0], in_photo)


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
