"""FLAME's decoder: shape, expression and pose → vertices (Li et al. 2017, equations 1 to 5), as DECA uses it."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..detection.landmark_network import POINTS
from ..errors import MeshError, WeightsError, WeightsMissingError
from ..geometry import check_mesh
from ..io import unpickle
from ..io.listing import has_suffix
from ..io.weights import SAFETENSORS
from . import known_files

SHAPE_COLUMNS = 300  # of `shapedirs`; the rest are expressions
MAX_JOINTS = 64
HEAD, JAW = 0, 2  # joints that DECA's pose turns
_NAMES = {"v_template": 2, "f": 2, "shapedirs": 3, "posedirs": 3, "weights": 2, "kintree_table": 2, "J_regressor": 2}
"""Of the file, with their numbers of dimensions."""
_OPTIONAL = ("expressiondirs", "landmarks", "expressiondeviations", "denselandmarks", "densedeviations", "denseerrors")
"""Of `.safetensors` files alone, see `load`."""
LANDMARKS = (4597, 4051, 3564, 2730, 1594)
"""Vertices of FLAME's mesh that the detector's five landmarks mark: the corneas' middles, the nose's tip, the ends of
the gap between the lips; the person's right first. Found from the mesh's geometry, as test_fitting.py does."""
_FLAME_VERTICES, FIVE = 5023, 5
SOURCE = (
    "FLAME, the 3D head whose shape that is, is licensed for non-commercial research only: register at "
    "https://flame.is.tue.mpg.de, accept the licence, download FLAME 2020 and copy its generic_model.pkl there; or "
    "copy flame2023_Open.pkl there, whose terms that page tells."
)


@dataclass(frozen=True, eq=False)
class Flame:
    """The model's arrays, float32; V vertices, J joints (head, neck, jaw and two eyes: 5).

    Attributes:
        template: (V, 3) mean face, metres.
        faces: (F, 3) int64.
        shape_basis: (V, 3, 300) and expression_basis (V, 3, 100), or fewer components.
        pose_basis: (V, 3, 9 (J − 1)) corrections by the joints' rotation matrices less identity.
        joint_regressor: (J, V).
        weights: (V, J) of the skinning.
        parents: of each joint, −1 for the root.
        landmarks: (L,) int64 vertices or (L, V) weights of all vertices, the first five those of the detector: the
            person's right and left eye, nose tip, right and left mouth corner; `None` where they are not known.
        expression_deviations: (E,) how far from 0 a face's expression usually is, in the code's units; `None`: 1 each.
        dense_landmarks: (478, V) weights of all vertices that give the points of `detection.dense_landmarks`, found by
            registration; `None` where they are not known.
        dense_deviations: (478,) metres, how far off each of these usually is by itself.
        dense_errors: (478, 3, K) metres on the head at rest, ways in which they are off together, per standard
            deviation.
    """

    template: Tensor
    faces: Tensor
    shape_basis: Tensor
    expression_basis: Tensor
    pose_basis: Tensor
    joint_regressor: Tensor
    weights: Tensor
    parents: tuple[int, ...]
    landmarks: Tensor | None = None
    expression_deviations: Tensor | None = None
    dense_landmarks: Tensor | None = None
    dense_deviations: Tensor | None = None
    dense_errors: Tensor | None = None

    def to(self, device: torch.device | str) -> "Flame":
        """The same model on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def decode(self, shape: Tensor, expression: Tensor | None = None, pose: Tensor | None = None) -> Tensor:
        """Vertices of B faces, on the model's device.

        Args:
            shape: (B, ≤ 300) standard deviations; the components not given are 0.
            expression: (B, ≤ 100) likewise; `None`: neutral.
            pose: (B, 6) rotation of head and jaw, axis-angle, radians; `None`: frontal, mouth as the expression says.

        Returns:
            (B, V, 3) float32, metres.

        Raises:
            MeshError: a code has more components than the model.
        """
        offset = _blend(self.shape_basis, shape)
        if expression is not None:
            offset = offset + _blend(self.expression_basis, expression)
        vertices = self.template + offset
        return vertices if pose is None else self.bend(vertices, pose)

    def bend(self, vertices: Tensor, pose: Tensor) -> Tensor:
        """Heads (B, V, 3) at rest, posed by (B, 6), rotation of head and jaw as `decode` takes it."""
        turns = vertices.new_zeros(len(pose), len(self.parents), 3)  # neck and eyes stay at rest
        turns[:, HEAD], turns[:, JAW] = pose[:, :3].to(turns), pose[:, 3:].to(turns)
        rotations = axis_angle_to_matrix(turns)
        joints = self.joint_regressor @ vertices
        turned = rotations[:, 1:] - torch.eye(3, device=rotations.device)
        vertices = vertices + _blend(self.pose_basis, turned.flatten(1))
        return self._skin(vertices, joints, rotations)

    def turn(self, vertices: Tensor, rotation: Tensor) -> Tensor:
        """Heads (B, V, 3) at rest, turned by (B, 3, 3) about their root joint, as `decode` turns them."""
        root = (self.joint_regressor[HEAD] @ vertices)[:, None]
        return (vertices - root) @ rotation.mT + root

    def _skin(self, vertices: Tensor, joints: Tensor, rotations: Tensor) -> Tensor:
        """Linear blend skinning: every vertex moves with a weighted mean of its joints' rigid motions."""
        turns, places = [rotations[:, 0]], [joints[:, 0]]
        for joint, parent in enumerate(self.parents[1:], start=1):
            bone = joints[:, joint] - joints[:, parent]
            places.append(places[parent] + (turns[parent] @ bone[..., None])[..., 0])
            turns.append(turns[parent] @ rotations[:, joint])
        turn = torch.stack(turns, 1)
        shift = torch.stack(places, 1) - (turn @ joints[..., None])[..., 0]
        turn, shift = torch.einsum("vj,bjxy->bvxy", self.weights, turn), self.weights @ shift
        return (turn @ vertices[..., None])[..., 0] + shift


def axis_angle_to_matrix(rotation: Tensor) -> Tensor:
    """Rodrigues' formula: (…, 3) radians → (…, 3, 3)."""
    angle = torch.linalg.vector_norm(rotation, dim=-1, keepdim=True)
    x, y, z = (rotation / angle.clamp(min=1e-8)).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    angle = angle[..., None]
    return torch.eye(3, device=rotation.device) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def load(path: str | Path) -> Flame:
    """Read FLAME from its pickle, of 2020 or 2023 Open (nothing of it is executed), or from a `.safetensors` file with
    the same names.

    Other meshes load likewise: counts are read from the arrays. Such a file may hold more: `landmarks`,
    `expressiondeviations`, `denselandmarks`, `densedeviations` and `denseerrors`, see `Flame`, and `expressiondirs`
    (V, 3, E), in which case all of `shapedirs` is shape.

    Raises:
        WeightsMissingError: there is no such file; says where to get it.
        WeightsError: unsafe, damaged or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsMissingError(f"The face model {path} is not there. {SOURCE}")
    tensors = _read_safetensors(path) if has_suffix(path, SAFETENSORS) else _read_pickle(path)
    for name, dimensions in _NAMES.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise WeightsError(
                f"{name} in {path} is {shape}, expected {dimensions} dimensions: it is damaged. "
                "Copy or download it again."
            )
    split = SHAPE_COLUMNS if "expressiondirs" not in tensors else tensors["shapedirs"].shape[2]
    landmarks = tensors.get("landmarks")
    if landmarks is None and len(tensors["v_template"]) == _FLAME_VERTICES:
        landmarks = torch.tensor(LANDMARKS)
    flame = Flame(
        template=tensors["v_template"].float(),
        faces=tensors["f"].long(),
        shape_basis=tensors["shapedirs"][..., :split].float(),
        expression_basis=tensors.get("expressiondirs", tensors["shapedirs"][..., split:]).float(),
        pose_basis=tensors["posedirs"].float(),
        joint_regressor=tensors["J_regressor"].float(),
        weights=tensors["weights"].float(),
        parents=(-1, *tensors["kintree_table"][0, 1:].long().tolist()),
        landmarks=landmarks if landmarks is None or landmarks.is_floating_point() else landmarks.long(),
        expression_deviations=tensors.get("expressiondeviations"),
        dense_landmarks=_float(tensors.get("denselandmarks")),
        dense_deviations=_float(tensors.get("densedeviations")),
        dense_errors=_float(tensors.get("denseerrors")),
    )
    _check(flame, path)
    return flame


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _read_pickle(path: Path) -> dict[str, Tensor]:
    content = unpickle.load(path)
    known_files.check(path)
    missing = [name for name in _NAMES if not isinstance(content, dict) or name not in content]
    if missing:
        raise WeightsError(f"{path} is not FLAME's generic_model.pkl: it lacks {', '.join(missing)}. {SOURCE}")
    arrays = {name: unpickle.array(content[name], f"{name} of {path}") for name in _NAMES if name != "J_regressor"}
    for name in ("f", "kintree_table"):
        arrays[name] = arrays[name].astype("int64")  # PyTorch has few operations on the file's unsigned numbers
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    matrix = unpickle.sparse(content["J_regressor"], f"J_regressor of {path}")
    if matrix.shape[0] > MAX_JOINTS or matrix.shape[1] != len(arrays["v_template"]):
        raise WeightsError(
            f"J_regressor of {path} is {matrix.shape}, which does not fit its vertices: it is damaged. "
            "Copy or download it again."
        )
    dense = torch.zeros(matrix.shape)
    dense[torch.from_numpy(matrix.rows), torch.from_numpy(matrix.columns)] = torch.from_numpy(matrix.values).float()
    return tensors | {"J_regressor": dense}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            held = set(file.keys())
            return {name: file.get_tensor(name) for name in (*_NAMES, *held.intersection(_OPTIONAL))}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a face model ({error}): expected the tensors {', '.join(_NAMES)}. Copy it again."
        ) from error


def _check(flame: Flame, path: Path) -> None:
    try:
        check_mesh(flame.template, flame.faces, f"The template in {path}")
    except MeshError as error:
        raise WeightsError(str(error)) from error
    vertices, joints = len(flame.template), len(flame.parents)
    expected = {
        "weights": (vertices, joints),
        "joint_regressor": (joints, vertices),
        "pose_basis": (vertices, 3, 9 * (joints - 1)),
        "shape_basis": (vertices, 3, flame.shape_basis.shape[-1]),
        "expression_basis": (vertices, 3, *flame.expression_basis.shape[2:3]),
    }
    if flame.expression_deviations is not None:
        expected["expression_deviations"] = flame.expression_basis.shape[2:]
    if flame.dense_landmarks is not None or flame.dense_deviations is not None:
        expected |= {"dense_landmarks": (POINTS, vertices), "dense_deviations": (POINTS,)}
    if flame.dense_errors is not None:
        expected["dense_errors"] = (POINTS, 3, *flame.dense_errors.shape[2:3])
    for name, shape in expected.items():
        tensor = getattr(flame, name)
        if tensor is None or tensor.shape != shape or not tensor.isfinite().all():
            found = "missing" if tensor is None else tuple(tensor.shape)
            raise WeightsError(
                f"{name} in {path} is {found}, expected {shape} and finite: it is damaged. Copy or download it again."
            )
    if flame.landmarks is not None and not _marks(flame.landmarks, vertices):
        raise WeightsError(
            f"landmarks in {path} are neither numbers of at least {FIVE} of its {vertices} vertices nor finite weights "
            "of all of them: it is damaged. "
            "Copy or download it again."
        )
    if joints < 3 or any(not 0 <= parent < i for i, parent in enumerate(flame.parents) if i):
        raise WeightsError(
            f"The joints in {path} are no tree of at least head, neck and jaw: {flame.parents}. "
            "Copy or download it again."
        )


def _marks(landmarks: Tensor, vertices: int) -> bool:
    if landmarks.ndim not in (1, 2) or len(landmarks) < FIVE:
        return False
    if landmarks.is_floating_point():
        return landmarks.shape[1:] == (vertices,) and bool(landmarks.isfinite().all())
    return landmarks.ndim == 1 and 0 <= int(landmarks.min()) <= int(landmarks.max()) < vertices


def _blend(basis: Tensor, code: Tensor) -> Tensor:
    """(V, 3, K) and (B, ≤ K) → (B, V, 3)."""
    if code.shape[1] > basis.shape[2]:
        raise MeshError(
            f"A code of {code.shape[1]} components does not fit this face model, which has {basis.shape[2]}. "
            "Use the regressor that belongs to this face model."
        )
    code = code.to(basis)
    return torch.einsum("vxk,bk->bvx", basis[..., : code.shape[1]], code)
