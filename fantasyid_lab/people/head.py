"""The parametric head of the synthetic people: shape, expression and pose → vertices, from one file of arrays."""

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fantasyid_core.errors import MeshError

FILE = Path(__file__).parent.parent / "data" / "head.safetensors"
# Share of a turn that each of the four joints (three of the neck, the head) adds to those below it.
_SHARES = (0.15, 0.2, 0.2, 0.45)
SKIN, LEFT_EYE, RIGHT_EYE, TONGUE, TEETH, HAIR, LASHES = range(7)
"""What a triangle is, in `Head.parts`; left and right are the person's."""


@dataclass(frozen=True, eq=False)
class Head:
    """Head, neck, shoulders, eyes, teeth, tongue, lashes and a hull of long hair; metres, y up, z out of the face.

    Attributes:
        template: (V, 3) float32, the mean person; the middle between the eyes is the origin.
        canonical: (V, 3) float32, the symmetric base mesh, in whose places paint is defined.
        faces: (F, 3) int64, counter-clockwise from outside; parts: (F,) int64, `SKIN` … `LASHES`.
        shape_basis: (V, 3, 100) float32, per standard deviation.
        expression_basis: (V, 3, 50) float32, per full action; `expressions`: their ARKit names.
        joints: (4, 3) of the neck and head of the mean person; joint_basis: (4, 3, 100).
        skin_weights: (V, 5), how far a vertex follows the body and the four joints.
        masks: (V, M) 0…1, `mask_names` says of what.
        landmarks: (68,) int64 vertices: right and left iris, nose tip, right and left mouth corner, then jaw line 17,
            brows 10, nose 8, eyes 12, outer 10 and inner 6 of the mouth, each from the person's right to left.
        openness: (V, 10), see `light`.
        prior: (100, features) and prior_factor (100, 100): codes of random people are prior · features + factor · noise
            with standard normal noise; `features` names the products (see `person`).
    """

    template: Tensor
    canonical: Tensor
    faces: Tensor
    parts: Tensor
    shape_basis: Tensor
    expression_basis: Tensor
    joints: Tensor
    joint_basis: Tensor
    skin_weights: Tensor
    masks: Tensor
    landmarks: Tensor
    openness: Tensor
    prior: Tensor
    prior_factor: Tensor
    expressions: tuple[str, ...]
    mask_names: tuple[str, ...]
    features: tuple[str, ...]

    def vertices(self, shape: Tensor, expression: Tensor | None = None, pose: Tensor | None = None) -> Tensor:
        """Vertices of B heads, on the head's device.

        Args:
            shape: (B, 100) standard deviations.
            expression: (B, 50) 0…1 each; neutral if None.
            pose: (B, 3) degrees of yaw (> 0: looks to +x), pitch (> 0: up) and roll (> 0: leans to +x); the shoulders
                stay. Frontal if None.

        Returns:
            (B, V, 3) float32, metres.

        Raises:
            MeshError: a code of another size.
        """
        for name, value, size in (
            ("shape", shape, self.shape_basis.shape[2]),
            ("expression", expression, len(self.expressions)),
            ("pose", pose, 3),
        ):
            if value is not None and (value.ndim != 2 or value.shape[1] != size):
                raise MeshError(f"The {name} has shape {tuple(value.shape)}; expected (batch, {size}).")
        vertices, joints = self.neutral(shape.float())
        if expression is not None:
            vertices = vertices + self.expression_offsets(expression.float())
        return vertices if pose is None else self.linear_blend_skinning(vertices, joints, pose.float())

    def neutral(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices (B, V, 3) and joints (B, 4, 3) of neutral frontal heads of shape (B, 100)."""
        vertices = self.template + (shape @ self.shape_basis.flatten(0, 1).T).unflatten(1, (-1, 3))
        return vertices, self.joints + torch.einsum("bk,jdk->bjd", shape, self.joint_basis)

    def expression_offsets(self, expression: Tensor) -> Tensor:
        """What expressions (B, 50) add to neutral vertices, (B, V, 3)."""
        return (expression @ self.expression_basis.flatten(0, 1).T).unflatten(1, (-1, 3))

    def linear_blend_skinning(self, vertices: Tensor, joints: Tensor, pose: Tensor) -> Tensor:
        """Frontal vertices (B, V, 3) with joints (B, 4, 3) → turned by (B, 3) degrees of yaw, pitch and roll."""
        share = pose.new_tensor(_SHARES).cumsum(0)
        rotations = rotation(pose[:, None] * share[:, None])
        position = joints[:, :1].expand(-1, 4, -1)
        steps = (rotations[:, :3] @ (joints[:, 1:] - joints[:, :3])[..., None])[..., 0]
        position = torch.cat([joints[:, :1], joints[:, :1] + steps.cumsum(1)], 1)
        shift = position - (rotations @ joints[..., None])[..., 0]
        moved = vertices * self.skin_weights[:, :1]
        for joint in range(4):
            # Written out: a matrix product may be rounded to 10 bits where TF32 is on.
            rigid = shift[:, joint, None]
            for axis in range(3):
                rigid = rigid + vertices[..., axis, None] * rotations[:, joint, None, :, axis]
            moved = moved + self.skin_weights[:, joint + 1, None] * rigid
        return moved


def rotation(pose: Tensor) -> Tensor:
    """(…, 3) degrees of yaw, pitch and roll → (…, 3, 3): roll · yaw · pitch, with the signs of `Head.vertices`."""
    yaw, pitch, roll = torch.deg2rad(pose).unbind(-1)
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    sideways = matrix(yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos())
    upwards = matrix(one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos())
    leaning = matrix(roll.cos(), roll.sin(), zero, -roll.sin(), roll.cos(), zero, zero, zero, one)
    return leaning @ sideways @ upwards


@lru_cache(maxsize=4)
def load(device: torch.device | str = "cpu") -> Head:
    """The head that ships with the pack, on a device; read once per device."""
    with safe_open(FILE, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    integers = ("faces", "parts", "landmarks")
    arrays = {name: (a.long() if name in integers else a.float()).to(device) for name, a in arrays.items()}
    texts = {"expressions": about["expressions"], "mask_names": about["masks"], "features": about["features"]}
    assert {field.name for field in fields(Head)} == arrays.keys() | texts.keys()
    return Head(**arrays, **{name: tuple(text.split()) for name, text in texts.items()})
