"""How a face moves, apart from the head; and whether outputs copy the reference's pose.

A head that turns moves every landmark, without any expression. So the rigid motion goes first: in every frame the
head's landmarks that no expression moves are fitted to the picture's, and what is left is the face's own motion. The
head is the template with what the whole clip tells of this person's shape, or a long nose would seem to move.

That is for landmarks that are known exactly. Those that a network reads tremble by more than a calm face moves, and err
with every turn of the head, so there the face's motion is what the expressions that it reads do to the landmarks of the
mean head: 50 numbers in place of 136, none of which a turn or a tremble looks like.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

TEMPLATE = Path(__file__).parents[1] / "data" / "landmark_template.safetensors"
# How far, in metres, people's landmarks lie off the template, and expressions move them: how much of a frame's offset
# is taken for the person's shape.
_SHAPE, _EXPRESSION = 0.005, 0.003
_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class LandmarkTemplate:
    """A neutral head's landmarks.

    Attributes:
        points: (N, 3) metres, y up, z out of the face.
        stable: (N,) bool: no expression moves it, so that it shows how the head lies.
        expression_basis: (N, 3, K) metres by which a full strength of each of K expressions moves it; None if unknown.
    """

    points: Tensor
    stable: Tensor
    expression_basis: Tensor | None = None

    @property
    def eyes(self) -> Tensor:
        """Distance between the eyes, which are the first two landmarks, metres."""
        return (self.points[0] - self.points[1]).double().norm()


@dataclass(frozen=True, eq=False)
class Motion:
    """What moves in a clip of T frames.

    Attributes:
        face: root mean square of the landmarks' own motion about their mean place, percent of the distance between
            the eyes. 0 for a mask, however it is turned.
        lasting: the same of motion that is still there in the next frame: the root of the mean product of a landmark's
            offsets in neighbouring frames, which flicker has no part in, nor has much of quick speech.
        head: root mean square of the head's rotation about its mean, degrees.
        shift: root mean square of the head's place in the picture about its mean, percent of the eyes' distance.
        face_per_frame: (T,) percent, the landmarks' own distance from their mean place; NaN without a face.
        head_per_frame: (T,) degrees, the head's rotation from its mean.
        pose: (T, 3) yaw, pitch, roll in degrees.
    """

    face: float
    lasting: float
    head: float
    shift: float
    face_per_frame: Tensor
    head_per_frame: Tensor
    pose: Tensor


@lru_cache
def head_template() -> LandmarkTemplate:
    """The mean head of the lab's synthetic people, whose 68 landmarks the attribute regressor reads.

    `stable` is what no expression moves by 3 mm.
    """
    tensors = load_file(TEMPLATE)
    return LandmarkTemplate(tensors["points"], tensors["stable"], tensors["moves"])


def measure(landmarks: Tensor, template: LandmarkTemplate, expression: Tensor | None = None) -> Motion:
    """The motion of one clip. Frames whose landmarks are NaN do not count.

    Args:
        landmarks: (T, N, 2), x right, y down, any unit.
        expression: (T, K) strengths where a network reads both; otherwise the landmarks must be exact.
    """
    landmarks, neutral = landmarks.double().cpu(), template.points.double().cpu()
    has_face = landmarks.isfinite().flatten(1).all(1)
    points, stable = neutral, template.stable.cpu()
    camera = fit_cameras(landmarks[has_face], points, stable)
    for rounds_left in reversed(range(_ROUNDS)):
        points = neutral + _shape_offset(landmarks[has_face], camera, neutral)
        if rounds_left:
            camera = fit_cameras(landmarks[has_face], points, stable)
    if expression is None:
        face_motion = _face_motion(landmarks[has_face], camera, points)
    else:
        face_motion = _expression_displacement(expression[has_face.to(expression.device)], template)
    eyes = template.eyes.cpu()
    face_motion = (face_motion - face_motion.mean(0)) / eyes * 100
    face = _scatter(face_motion.square().sum(-1).mean(1).sqrt(), has_face)
    lasting = (face_motion[1:] * face_motion[:-1]).sum(-1).mean() if len(face_motion) > 1 else face_motion.new_zeros(())
    pose = pose_of(camera)
    rotation = (pose - pose.mean(0)).norm(dim=1)
    scale = camera[:, 0, :3].norm(dim=1)
    shift = (camera[:, :, 3] - camera[:, :, 3].mean(0)).norm(dim=1) / (scale * eyes) * 100
    return Motion(
        face=_rms(face),
        lasting=float(lasting.clamp(min=0).sqrt()),
        head=_rms(rotation),
        shift=_rms(shift),
        face_per_frame=face.float(),
        head_per_frame=_scatter(rotation, has_face).float(),
        pose=_scatter(pose, has_face).float(),
    )


def fit_cameras(landmarks: Tensor, points: Tensor, stable: Tensor) -> Tensor:
    """Affine cameras (T, 2, 4) that take the stable points (x, y, z, 1) to the stable landmarks (T, N, 2)."""
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], 1)[stable]
    solved = torch.linalg.lstsq(homogeneous.expand(len(landmarks), -1, -1), landmarks[:, stable])
    return solved.solution.transpose(1, 2)


def pose_of(camera: Tensor) -> Tensor:
    """Affine cameras (T, 2, 4) → yaw, pitch, roll (T, 3) in degrees, as in `head_pose`: R_roll · R_yaw · R_pitch."""
    rows = camera[:, :, :3] * camera.new_tensor([[1.0], [-1.0]])  # y up, as the points have it
    u, _, vh = torch.linalg.svd(rows, full_matrices=False)
    right, up = (u @ vh).unbind(1)  # the nearest two rows of a rotation
    out = torch.linalg.cross(right, up)
    # R_z(−roll) R_y(yaw) R_x(−pitch), angles signed as HeadPose has them.
    yaw = torch.asin((-out[:, 0]).clamp(-1, 1))
    roll = -torch.atan2(up[:, 0], right[:, 0])
    pitch = -torch.atan2(out[:, 1], out[:, 2])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], 1))


def turn_speed(pose: Tensor) -> Tensor:
    """Poses (…, T, 3) of yaw, pitch and roll in degrees → by how much yaw and pitch change before or after each frame,
    whichever is more, degrees a frame (…, T).
    """
    between = pose[..., :2].diff(dim=-2).norm(dim=-1)
    return torch.maximum(torch.nn.functional.pad(between, (1, 0)), torch.nn.functional.pad(between, (0, 1)))


def copy_paste_index(output: Tensor, reference: Tensor) -> float:
    """Copy-paste index: how far the outputs' head pose follows the reference's, over N people.

    The slope of the least-squares line from the reference's yaw and pitch to the mean yaw and pitch of the output's
    frames, both angles about their means over the people together: 1 where every output has its reference's pose, 0
    where the pose is free of it. True clips of the same people give 0 within the noise of N people, 1 / √N or so.

    Args:
        output: (N, 2 or more) mean yaw, pitch (…) over each output's frames, degrees.
        reference: (N, 2 or more) of the references.
    """
    is_valid = output.isfinite().all(1) & reference.isfinite().all(1)
    y = output[is_valid, :2] - output[is_valid, :2].mean(0)
    x = reference[is_valid, :2] - reference[is_valid, :2].mean(0)
    return float((x * y).sum() / x.square().sum())


def mean_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Mean of one measure over clips by the mean of another; clips with NaN in either do not count."""
    a, b = torch.tensor(list(ours), dtype=torch.float64), torch.tensor(list(theirs), dtype=torch.float64)
    is_valid = a.isfinite() & b.isfinite()
    return float(a[is_valid].mean() / b[is_valid].mean())


def _shape_offset(landmarks: Tensor, camera: Tensor, points: Tensor) -> Tensor:
    """(N, 3) metres: where the person's landmarks most likely lie off the template, from all frames (T, N, 2)."""
    axes = camera[:, :, :3]
    unit = axes.norm(dim=(1, 2)).square().mean() / 2  # px² per m²
    residual = landmarks - points @ axes.transpose(1, 2) - camera[:, None, :, 3]
    prior = unit * (_EXPRESSION / _SHAPE) ** 2 * torch.eye(3, dtype=axes.dtype)
    evidence = torch.einsum("tij,tik->jk", axes, axes)
    return torch.linalg.solve(evidence + prior, torch.einsum("tij,tni->jn", axes, residual)).T


def _face_motion(landmarks: Tensor, camera: Tensor, points: Tensor) -> Tensor:
    """(T, N, 3) where the landmarks lie off the rigid head, taken back into the head's own axes, metres.

    A picture shows two of the three directions: the offset is the shortest that explains what it shows.
    """
    predicted = points @ camera[:, :, :3].transpose(1, 2) + camera[:, None, :, 3]
    inverse = torch.linalg.pinv(camera[:, :, :3])
    return (landmarks - predicted) @ inverse.transpose(1, 2)


def _expression_displacement(expression: Tensor, template: LandmarkTemplate) -> Tensor:
    """Strengths (T, K) → (T, N, 2) metres by which they move the template's landmarks, seen from the front."""
    if template.expression_basis is None:
        raise ValueError("this template does not know how expressions move its landmarks")
    return torch.einsum("tk,nik->tni", expression.double().cpu(), template.expression_basis[:, :2].double().cpu())


def _scatter(values: Tensor, has_face: Tensor) -> Tensor:
    filled = values.new_full((len(has_face), *values.shape[1:]), float("nan"))
    filled[has_face] = values
    return filled


def _rms(values: Tensor) -> float:
    return float(values[values.isfinite()].square().mean().sqrt())
