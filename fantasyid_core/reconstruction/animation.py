"""A mesh that moves: its neutral shape, the ways in which it moves, and how far along each it is in every frame."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..detection import head_pose
from ..errors import MeshError
from ..geometry import check_mesh
from .render import shade_moving

_CHUNK = 32  # frames whose vertices are held at a time


@dataclass(frozen=True, eq=False)
class Animation:
    """T frames of a mesh, float32; of the frames' vertices only those that are asked for are made.

    Attributes:
        neutral: (V, 3) metres, y up, z out of the face.
        faces: (F, 3) int64 or None.
        ways: (V, 3, M) metres per unit, what expressions and jaw do to the neutral face.
        weights: (T, M) units.
        pose: (T, 3) degrees of yaw, pitch and roll as in `HeadPose`, about `root`.
        root: (3,) metres.
        fps: frames per second.
    """

    neutral: Tensor
    faces: Tensor | None
    ways: Tensor
    weights: Tensor
    pose: Tensor
    root: Tensor
    fps: float

    @property
    def rotation(self) -> Tensor:
        """(T, 3, 3) of the head."""
        return head_pose.rotation(*self.pose.unbind(-1))

    def vertices(self, first: int = 0, last: int | None = None) -> Tensor:
        """(n, V, 3) metres, of the frames from `first` to before `last` (None: all that follow)."""
        moved = self.neutral + torch.einsum("vxm,tm->tvx", self.ways, self.weights[first:last])
        return (moved - self.root) @ self.rotation[first:last].mT + self.root

    def resampled(self, fps: float) -> "Animation":
        """The same at another rate, straight lines between frames; ends with the last frame that is not after its own.

        Raises:
            MeshError: that is no rate.
        """
        if not 0 < fps < float("inf"):
            raise MeshError(f"An animation needs a rate above 0 frames per second; got {fps}. Set fps higher.")
        last = len(self.weights) - 1
        places = torch.arange(math.floor(last / self.fps * fps + 1e-6) + 1, device=self.weights.device) * self.fps / fps
        before = places.floor().long().clamp(max=last)
        after, share = (before + 1).clamp(max=last), (places - before)[:, None]

        def between(values: Tensor) -> Tensor:
            return torch.lerp(values[before], values[after], share)

        return replace(self, weights=between(self.weights), pose=between(self.pose), fps=fps)


def shade(animation: Animation, size: int = 512) -> Tensor:
    """Every frame as `render.shade` draws meshes, the head turning in the middle of the picture.

    Returns:
        (T, size, size, 3) float32 0…1 on the CPU.

    Raises:
        MeshError: as `render.shade`.
    """
    neutral = animation.neutral
    check_mesh(neutral, animation.faces)
    middle = (neutral.amin(0) + neutral.amax(0)) / 2
    reach = float((neutral - middle).norm(dim=1).amax())
    chunks = range(0, len(animation.weights), _CHUNK)
    shaded = (
        shade_moving(animation.vertices(i, i + _CHUNK), animation.faces, middle, reach, size).cpu() for i in chunks
    )
    return torch.cat(list(shaded))
