"""Batches of stage identity: clips with pictures of their people, as a source gives them and as the objective reads."""

from dataclasses import dataclass

from torch import Tensor

from .acting import Performances
from .stage import Batch


@dataclass(frozen=True, eq=False)
class ReferenceCrops(Batch):
    """A picture of each person: crops (B, S, S, 3) 0…1, aligned, and vertices (B, V, 3), the shapes seen in them."""

    crops: Tensor
    vertices: Tensor


@dataclass(frozen=True, eq=False)
class Reference(Batch):
    """What frozen networks made of such a picture.

    Attributes:
        tokens: (B, N, K) identity tokens, or (B, t, N, K) of each latent frame; or, where their encoder is trained,
            what it encodes:
        hidden_states: (B, 1 + P, D), the tower's; vertices: (B, V, 3).
        meshes: (A, t, V, 3), of the first A of the B, who act: vertices in each latent frame.
        first_frame: (B, 16, h, w) latents, where image latents are made of them.
    """

    tokens: Tensor | None = None
    hidden_states: Tensor | None = None
    vertices: Tensor | None = None
    meshes: Tensor | None = None
    first_frame: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Clips(Batch):
    """What a source gives: clips, or single frames of photos, and a reference of each.

    Attributes:
        latents: (B, t, 16, h, w); face_mask: (B, t, h, w) 0…1, where the face is in them.
        text: (B, L, D) embeddings of the captions.
        reference: of the same people.
        performances: what their faces do in the clips, where that is known.
    """

    latents: Tensor
    face_mask: Tensor
    text: Tensor
    reference: ReferenceCrops | Reference
    performances: Performances | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationClips(Clips):
    """Clips that are looked at.

    Attributes:
        reference: as crops, which are shown beside what is generated.
        empty_text: (1, L, D) embeddings of no text.
        truth: (B, T, H, W, 3) 0…1, frames of the clips.
    """

    reference: ReferenceCrops
    empty_text: Tensor
    truth: Tensor


@dataclass(frozen=True, eq=False)
class IdentityBatch(Batch):
    """What the objective takes.

    Attributes:
        latents, face_mask, text: as in `Clips`; reference: of the people, without `first_frame`.
        image: (B, t, 16, h, w) image latents, zeros without a first frame.
        noise: (B, t, 16, h, w), standard normal; timestep: (B,), 0…999.
        present: (B,) 0 or 1, whether a sample has its identity; None: all have.
    """

    latents: Tensor
    face_mask: Tensor
    text: Tensor
    reference: Reference
    image: Tensor
    noise: Tensor
    timestep: Tensor
    present: Tensor | None = None
