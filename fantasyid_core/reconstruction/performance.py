"""What a face does in a video, without whose it is: expression, jaw and head pose per frame; captured from dense
landmarks, put on other people's meshes, kept in small files.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..detection.dense_pose import pose_from_dense
from ..detection.face_track import FaceTrack
from ..detection.one_euro import OneEuroFilter
from ..errors import MeshError, WeightsError
from ..io import weights
from ..io.layout import save_tensors
from .animation import Animation
from .dense_fit import fit_dense
from .dense_transfer import with_known_points
from .face_mesh import FaceMesh
from .flame import HEAD, JAW, Flame
from .landmark_fit import COMPONENTS
from .mesh_space import into_space

HOLD, LOOP, PING_PONG = AFTERWARDS = ("hold", "loop", "ping-pong")
FORMAT = "fantasyid-performance-1"
SUFFIX = ".safetensors"
_SHAPE_FRAMES = 16
_CHUNK = 64  # frames fitted at a time, which bounds the memory
_ITERATIONS = 6
_CERTAIN = 0.9  # of the best frame's confidence, for frames that the shape is found in
_TURN = 180.0  # degrees; a second's turn by as much is fast
_JAW_STEP = 0.15  # radians, over which the jaw's way is taken as straight
_JAW_DEVIATIONS = (0.1, 0.03, 0.01)  # radians of opening, to the side, and about the view
MAX_FRAMES = 200_000


@dataclass(frozen=True, eq=False)
class Performance:
    """T frames, float32 on the CPU. Where the face was not seen values lie between those of the frames around.

    Attributes:
        expression: (T, E) in the units of the face model's basis.
        jaw: (T, 3) axis-angle, radians; 0 where the model's expressions open the mouth.
        pose: (T, 3) degrees of yaw, pitch and roll of the head as in `HeadPose`.
        confidence: (T,) 0…1; 0 where the face was not seen.
        fps: frames per second.
        basis: which face model's expressions these are, `basis_of`.
    """

    expression: Tensor
    jaw: Tensor
    pose: Tensor
    confidence: Tensor
    fps: float
    basis: str

    @property
    def frames(self) -> int:
        """T."""
        return len(self.pose)


def basis_of(model: Flame) -> str:
    """A short name of a face model's expressions, the same on every machine."""
    basis = model.expression_basis[..., : COMPONENTS[1]].float().cpu().contiguous()
    return hashlib.sha256(basis.numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def capture(
    model: Flame, track: FaceTrack, progress: Callable[[int], None] | None = None, *, smooth: bool = True
) -> Performance:
    """What the face of a track does: one shape for the whole video, then every frame with that shape.

    Args:
        model: a face model that knows its `dense_landmarks`.
        progress: called with the number of frames that are done.
        smooth: whether the head's pose is steadied by a One Euro filter, which holds small turns back.

    Raises:
        MeshError: it is not known where the face model has these points, or no face fits.
    """
    seen = track.present.nonzero().flatten()
    if not len(seen):
        raise MeshError("The face is in none of the frames: use a video that shows it.")
    model = with_known_points(model)
    held = _with_jaw(_held(model, track, seen))
    expression, pose = [], []
    for chosen in seen.split(_CHUNK):
        points = track.points[chosen]
        fitted = fit_dense(held, points[:, None, :, :2].to(model.template.device), iterations=_ITERATIONS)
        expression.append(fitted.expression[:, 0].cpu())
        pose.append(_angles(fitted.rotation[:, 0].cpu()))
        if progress is not None:
            progress(int(chosen[-1]) + 1)
    codes = _filled(torch.cat(expression), seen, len(track.present))
    jaw, codes = codes.split((_jaw_components(model), codes.shape[1] - _jaw_components(model)), 1)
    angles = torch.from_numpy(np.unwrap(torch.cat(pose).numpy(), period=360, axis=0))
    angles = angles + _offset(angles, track.points[seen])
    if smooth:
        angles = _steadied(angles, track.fps)
    return Performance(
        codes,
        jaw if jaw.shape[1] else codes.new_zeros(len(codes), 3),
        _filled(angles, seen, len(codes)),
        track.confidence.float() * track.present,
        track.fps,
        basis_of(model),
    )


def _held(model: Flame, track: FaceTrack, seen: Tensor) -> Flame:
    """The model with this person's neutral face as its only shape, found in frames from all over the video."""
    certain = seen[track.confidence[seen] >= _CERTAIN * track.confidence[seen].max()]
    spread = certain[torch.linspace(0, len(certain) - 1, min(_SHAPE_FRAMES, len(certain))).round().long()]
    shape = fit_dense(_with_jaw(model), track.points[spread][None].to(model.template.device)).shape
    return replace(model, template=model.decode(shape)[0], shape_basis=model.shape_basis[..., :0])


def _with_jaw(model: Flame) -> Flame:
    """The model with its jaw's ways as its first expressions, as many as fit."""
    expressions = model.expression_basis.shape[2]
    deviations = model.expression_deviations
    if deviations is None:
        deviations = model.template.new_ones(expressions)
    jaw = _jaw_ways(model, model.template)
    return replace(
        model,
        expression_basis=torch.cat([jaw, model.expression_basis], 2)[..., : COMPONENTS[1]],
        expression_deviations=torch.cat([deviations.new_tensor(_JAW_DEVIATIONS)[: jaw.shape[2]], deviations]),
    )


def _jaw_components(model: Flame) -> int:
    return 3 if bool(model.weights[:, JAW].any()) else 0


def _jaw_ways(model: Flame, neutral: Tensor) -> Tensor:
    """(V, 3, 3) metres per radian about x, y and z, or (V, 3, 0) where no vertex follows the jaw."""
    turns = neutral.new_zeros(_jaw_components(model), 6)
    turns[:, 3:] = _JAW_STEP * torch.eye(3).to(neutral)[: len(turns)]
    bent = model.bend(neutral.expand(len(turns), -1, -1), turns)
    return ((bent - neutral) / _JAW_STEP).permute(1, 2, 0)


def _angles(rotation: Tensor) -> Tensor:
    """(T, 3, 3) → (T, 3) degrees of yaw, pitch and roll, as `head_pose.rotation` takes them."""
    yaw = torch.asin(-rotation[:, 2, 0].clamp(-1, 1))
    pitch = torch.atan2(-rotation[:, 2, 1], rotation[:, 2, 2])
    roll = torch.atan2(-rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.stack([yaw, pitch, roll], 1).rad2deg()


def _offset(angles: Tensor, points: Tensor) -> Tensor:
    """(3,) degrees from the fit's poses (n, 3) to the network's: nearer over a video, where the fit is steadier.

    0 where points (n, 478, 3) have no depths, which the network needs.
    """
    if not points[..., 2].any():
        return torch.zeros(3)
    apart = torch.remainder(pose_from_dense(points) - angles + 180, 360) - 180
    return apart.median(0).values


def _steadied(angles: Tensor, fps: float) -> Tensor:
    """(n, 3) degrees: the points' last noise turns a still head by tenths of a degree."""
    steady = OneEuroFilter(fps)
    return torch.stack([steady(own, _TURN) for own in angles])


def _filled(values: Tensor, seen: Tensor, frames: int) -> Tensor:
    """Values (n, D) of the frames `seen` (n,) → (frames, D): straight lines between them, held at the ends."""
    columns = [np.interp(np.arange(frames), seen.numpy(), column) for column in values.T.numpy()]
    return torch.from_numpy(np.stack(columns, 1)).float()


@torch.no_grad()
def perform(
    model: Flame,
    mesh: FaceMesh,
    performance: Performance,
    *,
    expression_strength: float = 1.0,
    head_strength: float = 1.0,
    first: int = 0,
    last: int = -1,
    length: int = 0,
    afterwards: str = HOLD,
) -> Animation:
    """Let a person's mesh do what a performance says, on the model's device.

    Args:
        model: the face model that the performance was captured with.
        mesh: of the same topology. Where its shape is known its neutral face moves; else its vertices are taken for
            the neutral face.
        expression_strength, head_strength: 0 holds still, 1 is as captured.
        first, last: frames of the performance, both included; negative ones count from its end.
        length: how many frames come out; 0: as many as were taken.
        afterwards: what happens where more are wanted: "hold" the last one, "loop" from the first, "ping-pong" back and
            forth.

    Raises:
        MeshError: another topology or face model, no such part, or values that are not finite.
    """
    if mesh.vertices.shape != model.template.shape:
        raise MeshError(
            f"The mesh has {len(mesh.vertices)} vertices, the face model {len(model.template)}: choose the model that "
            "the mesh was made with, or reconstruct the face with this one."
        )
    if performance.basis != basis_of(model):
        raise MeshError(
            "The performance was captured with another face model, whose expressions this one does not know. Choose "
            "the model that it was captured with, or capture the video again with this one."
        )
    chosen = _frames(performance.frames, first, last, length, afterwards)
    mesh, _ = into_space(mesh, model.template)
    if mesh.shape_code is None:
        neutral = mesh.vertices.to(model.template)
    else:
        neutral = model.decode(mesh.shape_code[None].to(model.template))[0]
    expressions = model.expression_basis[..., : performance.expression.shape[1]]
    jaw = _jaw_ways(model, neutral)
    codes = torch.cat([performance.jaw[:, : jaw.shape[2]], performance.expression], 1)[chosen]
    return Animation(
        neutral,
        mesh.faces if mesh.faces is None else mesh.faces.to(neutral.device),
        torch.cat([jaw, expressions], 2),
        (expression_strength * codes).to(neutral),
        (head_strength * performance.pose[chosen]).to(neutral),
        model.joint_regressor[HEAD] @ neutral,
        performance.fps,
    )


def _frames(frames: int, first: int, last: int, length: int, afterwards: str) -> Tensor:
    """(length,) numbers of the performance's frames."""
    start, end = (number if number >= 0 else frames + number for number in (first, last))
    if not 0 <= start <= end < frames:
        raise MeshError(
            f"Frames {first} to {last} were asked for, but the performance has {frames}. Choose a first and a last "
            f"frame from 0 to {frames - 1}, the first not after the last; −1 is the end."
        )
    if afterwards not in AFTERWARDS:
        raise MeshError(f"There is no end called '{afterwards}'; choose one of: {', '.join(AFTERWARDS)}.")
    if not 0 <= length <= MAX_FRAMES:
        raise MeshError(f"{length} frames were asked for. Set length within 0 (as many as taken) to {MAX_FRAMES:,}.")
    count = end - start + 1
    steps = torch.arange(length or count)
    if afterwards == LOOP:
        steps = steps % count
    elif afterwards == PING_PONG and count > 1:
        steps = steps % (2 * count - 2)
        steps = torch.minimum(steps, 2 * count - 2 - steps)
    return start + steps.clamp(max=count - 1)


def save_performance(performance: Performance, path: Path) -> None:
    """Write a performance to a `.safetensors` file. Raises SaveError when the disk refuses it."""
    tensors = {name: value.contiguous() for name, value in vars(performance).items() if isinstance(value, Tensor)}
    save_tensors(tensors, path, {"format": FORMAT, "fps": repr(performance.fps), "basis": performance.basis})


def load_performance(path: Path) -> Performance:
    """Read a performance from a `.safetensors` file.

    Raises:
        WeightsMissingError, WeightsError: the file is missing, damaged or of another kind.
    """
    tensors, about = weights.read(path), weights.read_metadata(path)
    names = [field.name for field in fields(Performance) if field.type is Tensor]
    if about.get("format") != FORMAT or not tensors.keys() >= set(names):
        raise WeightsError(
            f"{path.name} is no performance (its format is not {FORMAT}). Choose a file that FantasyID Save "
            "Performance wrote."
        )
    performance = Performance(**{name: tensors[name].float() for name in names}, **_numbers(about, path))
    _check(performance, path.name)
    return performance


def _numbers(about: dict[str, str], path: Path) -> dict:
    try:
        return {"fps": float(about["fps"]), "basis": about["basis"]}
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path.name} does not say its frames per second: save the performance again.") from error


def _check(performance: Performance, name: str) -> None:
    values = [value for value in vars(performance).values() if isinstance(value, Tensor)]
    frames, shapes = performance.confidence.numel(), [tuple(value.shape) for value in values]
    fits = shapes == [(frames, performance.expression.shape[-1]), (frames, 3), (frames, 3), (frames,)]
    finite = all(bool(value.isfinite().all()) for value in values) and 0 < performance.fps < float("inf")
    if not (fits and finite and 0 < frames <= MAX_FRAMES):
        raise WeightsError(
            f"{name} does not hold a usable performance: shapes {shapes}, "
            f"{performance.fps} frames per second, finite: {finite}. Save it again from FantasyID Capture."
        )
