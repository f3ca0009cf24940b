"""What faces do in clips, as capture would know it, and their meshes in each latent frame."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fantasyid_core.detection import head_pose
from fantasyid_core.dit.acting import per_latent
from fantasyid_core.reconstruction.flame import HEAD, Flame

from . import data
from .stage import Batch

# Standard deviations of what FantasyID Capture is off by (docs/log/2026-11-28-capture-and-perform.md): of a whole clip,
# and of each frame by itself; pose in degrees, expressions by what is usual of each, 0.64 mm on the face in all.
CLIP_POSE, FRAME_POSE = (1.3, 2.5, 0.4), (0.2, 0.2, 0.1)
CLIP_EXPRESSION, FRAME_EXPRESSION = 0.2, 0.1


@dataclass(frozen=True, eq=False)
class Performances(Batch):
    """What B faces do: expression (B, T, E) in units of the face model's basis, pose (B, T, 3) degrees of yaw, pitch
    and roll.
    """

    expression: Tensor
    pose: Tensor


def as_captured(
    true: Performances, face: Flame, generator: torch.Generator, noise: float, missing: float
) -> Performances:
    """Performances with errors as capture has them.

    Args:
        noise: factor on the errors; 0 for none.
        missing: share of the clips in a stretch of which the face was not seen; capture draws straight lines there.
    """
    count, frames = true.pose.shape[:2]
    usual = face.expression_deviations
    spread = true.expression.new_ones(()) if usual is None else usual[: true.expression.shape[2]]

    def errors(values: Tensor, of_clip: Tensor, of_frame: Tensor) -> Tensor:
        size = values.shape[2]
        constant, changing = (data.randn(generator, count, n, size) for n in (1, frames))
        return noise * (constant * of_clip + changing * of_frame)

    pose, expression = true.pose, true.expression
    if noise:
        pose = pose + errors(pose, pose.new_tensor(CLIP_POSE), pose.new_tensor(FRAME_POSE))
        expression = expression + errors(expression, CLIP_EXPRESSION * spread, FRAME_EXPRESSION * spread)
    if missing:
        first, last = _stretches(count, frames, generator, missing)
        expression, pose = (_drawn_through(values, first, last) for values in (expression, pose))
    return Performances(expression, pose)


def _stretches(count: int, frames: int, generator: torch.Generator, share: float) -> tuple[Tensor, Tensor]:
    """First and last (B,) frames of what is missing, up to half of a clip; where nothing is the last is before it."""
    length = data.randint(generator, max(1, frames // 2), count) + 1
    first = (data.rand(generator, count) * (frames - length + 1)).long()
    some = data.rand(generator, count) < share
    return first, torch.where(some, first + length - 1, first - 1)


def _drawn_through(values: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Values (B, T, D) with straight lines over these frames, held where one end of the clip is missing."""
    end = values.shape[1] - 1
    before, after = first - 1, last + 1
    left, right = (
        torch.where(before < 0, after, before).clamp(0, end),
        torch.where(after > end, before, after).clamp(0, end),
    )
    rows = torch.arange(len(values), device=values.device)
    times = torch.arange(end + 1, device=values.device)
    share = ((times - before[:, None]) / (after - before).clamp(min=1)[:, None]).clamp(0, 1)[..., None]
    line = torch.lerp(values[rows, left][:, None], values[rows, right][:, None], share.to(values))
    missing = (times >= first[:, None]) & (times <= last[:, None])
    return torch.where(missing[..., None], line, values)


def meshes_per_latent_frame(face: Flame, neutral: Tensor, performances: Performances) -> Tensor:
    """Neutral meshes (B, V, 3), metres → what they do in each latent frame, (B, t, V, 3), as FantasyID Perform and
    `dit.acting.per_latent_frame` make them.
    """
    expression, pose = (per_latent(x.movedim(1, 0)).movedim(0, 1) for x in (performances.expression, performances.pose))
    basis = face.expression_basis[..., : expression.shape[2]]
    root = torch.einsum("v,bvd->bd", face.joint_regressor[HEAD], neutral)[:, None, None]
    moved = neutral[:, None] + (expression @ basis.flatten(0, 1).T).unflatten(2, (-1, 3))
    return (moved - root) @ head_pose.rotation(*pose.unbind(-1)).mT + root
