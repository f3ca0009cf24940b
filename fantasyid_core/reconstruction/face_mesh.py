"""Face → mesh: DECA's regressor and FLAME's decoder on the photo, or a vertex file that was made elsewhere."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..detection.dense_landmarks import ensure_dense_landmarks
from ..detection.faces import DetectedFace, detect
from ..detection.selection import select
from ..errors import FaceNotFoundError, MeshError, WeightsMissingError
from ..io.layout import DECA_NAMES, FLAME_NAMES
from . import deca, flame
from .deca_input import WHOLE_PHOTO, prepare, to_photo
from .dense_fit import fit_dense
from .landmark_fit import Fit, at_landmarks, fit
from .mesh_files import read_mesh

log = logging.getLogger(__name__)

AS_RELEASED, SHAPE_ONLY = MODES = ("as released", "shape only")
_BATCH = 16  # photos in one batch of DECA, which bounds its memory
DECA_SOURCE = (
    "DECA, which tells the face's 3D shape from the photo, is licensed for non-commercial research only: get "
    "deca_model.tar as https://github.com/yfeng95/DECA says, accept the licence and copy it there."
)
INSTEAD = (
    "Or choose the method 'dense fit' with FantasyID-nano, whose face model comes with the pack, or 'landmark fit', "
    "which needs the face model alone; without both load the face's vertices from a .ply or .obj file"
)


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
    """Read a mesh of the model's topology from a `.ply` or `.obj` file.

    Args:
        expected_vertices: of the topology (FLAME: 5023); `None` accepts any, the spiral network checks again.

    Raises:
        MeshError: the file is not readable, not a sound mesh, or has another number of vertices.
    """
    vertices, faces = read_mesh(path)
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
    framing: str = WHOLE_PHOTO,
    others: Sequence[DetectedFace] = (),
) -> FaceMesh:
    """Estimate the mesh of the face in a photo with DECA, on the device of regressor and model.

    Args:
        mode: "as released": shape, expression and pose; "shape only": the shape alone, as in the paper (section 3.2).
            `in_photo` has expression and pose either way.
        framing: of the regressor's input, `deca_input.FRAMINGS`: the whole photo squeezed to a square, as released, or
            DECA's own crop of the face.
        others: the same person in further photos. The shape is then the mean of all photos' by the faces' quality;
            expression, pose and `in_photo` are those of `face`.

    Raises:
        MeshError: there is no such mode or input, or the mesh came out with values that are not finite.
    """
    _check_mode(mode)
    inputs = [prepare(each, framing) for each in (face, *others)]
    images = torch.cat([each.image.to(model.template.device) for each in inputs])
    code = deca.split(torch.cat([regressor(part) for part in images.split(_BATCH)]))
    weight = _weights(face, *others).to(code.shape)
    shape = (weight[:, None] * code.shape).sum(0, keepdim=True) / weight.sum()
    posed = model.decode(shape, code.expression[:1], code.pose[:1])
    in_photo = to_photo(deca.project(posed, code.camera[:1])[0], inputs[0].to_photo)
    vertices = posed if mode == AS_RELEASED else model.decode(shape)
    return _finite(FaceMesh(vertices[0], model.faces, shape[0], in_photo), "the weights of DECA are damaged")


@torch.no_grad()
def from_landmarks(
    face: DetectedFace, model: flame.Flame, mode: str = AS_RELEASED, others: Sequence[DetectedFace] = ()
) -> FaceMesh:
    """Estimate the mesh of the face in a photo from the detector's five landmarks alone, on the model's device.

    Args:
        mode, others: as for `reconstruct`; the photos count by the faces' quality and by what each shows of the shape,
            see `landmark_fit.fit`.

    Raises:
        MeshError: there is no such mode, it is not known where the face model has its landmarks, or no face fits.
    """
    _check_mode(mode)
    if model.landmarks is None:
        raise MeshError(
            f"It is not known which of this face model's {len(model.template)} vertices are eyes, nose and mouth: use "
            "FLAME, or a .safetensors face model with a tensor 'landmarks', or the method DECA."
        )
    faces, device = (face, *others), model.template.device
    landmarks = torch.stack([each.landmarks.to(device) for each in faces])
    fitted = fit(
        model,
        landmarks[None],
        model.landmarks[: landmarks.shape[1]],
        confidence=_weights(*faces).to(device)[None, :, None],
        expression_deviations=model.expression_deviations,
    )
    return _fitted_mesh(model, fitted, mode)


@torch.no_grad()
def from_dense_landmarks(
    face: DetectedFace, model: flame.Flame, mode: str = AS_RELEASED, others: Sequence[DetectedFace] = ()
) -> FaceMesh:
    """Estimate the mesh of the face in a photo from its 478 dense landmarks, on the model's device.

    Args:
        face, others: those without dense landmarks are read now.
        mode, others: as for `reconstruct`; the photos count by the faces' quality, by how certain their landmarks are
            and by what each shows of the shape, see `dense_fit.fit_dense`.

    Raises:
        MeshError: there is no such mode, it is not known where the face model has these points, or no face fits.
    """
    _check_mode(mode)
    device = model.template.device
    faces = [ensure_dense_landmarks(each, device=device) for each in (face, *others)]
    points = torch.stack([each.dense_landmarks.to(device) for each in faces if each.dense_landmarks is not None])
    certain = torch.tensor([each.dense_confidence for each in faces])
    confidence = (_weights(*faces) * certain / certain.max().clamp(min=1e-3)).to(device)
    return _fitted_mesh(model, fit_dense(model, points[None], confidence=confidence[None]), mode)


def _fitted_mesh(model: flame.Flame, fitted: Fit, mode: str) -> FaceMesh:
    """The mesh of one person's first photo."""
    expressed = model.decode(fitted.shape, fitted.expression[:, 0])
    photos = fitted.scale.shape[1]
    in_photo = fitted.in_photo(expressed[:, None].expand(-1, photos, -1, -1))[0, 0]
    posed = model.turn(expressed, fitted.rotation[:, 0])
    vertices = posed if mode == AS_RELEASED else model.decode(fitted.shape)
    return _finite(FaceMesh(vertices[0], model.faces, fitted.shape[0], in_photo), "no face fits these landmarks")


def misfit(mesh: FaceMesh, face: DetectedFace, model: flame.Flame) -> float:
    """How far eyes, nose and mouth of a mesh lie from those of its face in the photo: mean, in distances of the eyes.

    NaN where it is not known which of the model's vertices these are, or where the photo shows the mesh.
    """
    if model.landmarks is None or mesh.in_photo is None:
        return math.nan
    detected = face.landmarks.to(mesh.in_photo)
    projected = at_landmarks(model.landmarks[: len(detected)], mesh.in_photo[:, :2])
    return float((projected - detected).norm(dim=1).mean() / (detected[1] - detected[0]).norm())


def largest_faces(images: Tensor, device: torch.device | str | None = None) -> list[DetectedFace]:
    """The largest face of each of a batch of photos (B, H, W, C); photos without a usable one are skipped and counted.

    Args:
        device: where the detector runs (default: where the photos are).

    Raises:
        ImageError: a photo cannot be used.
    """
    found = []
    for photo in images:
        try:
            found.append(select(detect(photo, device=device)))
        except FaceNotFoundError:
            continue
    if len(found) < len(images):
        log.info(
            "FantasyID: no usable face in %d of %d photos; they were skipped.", len(images) - len(found), len(images)
        )
    return found


def _weights(*faces: DetectedFace) -> Tensor:
    """(N,) what each photo counts by its quality; the best counts 1."""
    if len(faces) == 1:
        return torch.ones(1)
    quality = torch.tensor([max(face.quality, 1e-3) for face in faces])
    return quality / quality.max()


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise MeshError(f"There is no reconstruction mode '{mode}'; choose one of: {', '.join(MODES)}.")


def _finite(mesh: FaceMesh, otherwise: str) -> FaceMesh:
    if not all(points.isfinite().all() for points in (mesh.vertices, mesh.in_photo) if points is not None):
        raise MeshError(
            f"The face's mesh came out with values that are not finite: {otherwise}. "
            "Check the photo, or load the model again."
        )
    return mesh


def find_files(*folders: Path) -> tuple[Path, Path]:
    """The files of DECA and of FLAME in the first of the `face_model/` folders that has each.

    Raises:
        WeightsMissingError: names what is missing, where it was looked for, where to get it and under which licence.
    """
    deca_file, flame_file = _find(folders, (DECA_NAMES, DECA_SOURCE), (FLAME_NAMES, flame.SOURCE))
    return deca_file, flame_file


def find_face_model(*folders: Path) -> Path:
    """FLAME's file alone, which `from_landmarks` needs. Raises WeightsMissingError as `find_files` does."""
    return _find(folders, (FLAME_NAMES, flame.SOURCE))[0]


def _find(folders: tuple[Path, ...], *wanted: tuple[tuple[str, ...], str]) -> list[Path]:
    found, missing, problems = [], [], []
    for names, source in wanted:
        paths = (folder / name for folder in folders for name in names)
        if path := next((path for path in paths if path.is_file()), None):
            found.append(path)
            continue
        missing.append(names[0])
        problems.append(f"{' or '.join(str(folder / names[0]) for folder in folders)} is not there. {source}")
    if missing:
        raise WeightsMissingError(
            f"Copy {' and '.join(missing)} into the model's face_model folder. {INSTEAD}. {' '.join(problems)}"
        )
    return found
