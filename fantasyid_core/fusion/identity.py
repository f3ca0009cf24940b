"""Feature fusion: face views and a face mesh → the identity (paper, sections 3.1 and 3.2).

An identity is a constant of the video or, where its face acts, has vertex tokens of its own in each latent frame. It is
computed once, kept on its device, and can be saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import IdentityError
from ..io.layout import save_tensors
from ..operations import TORCH, Operations
from ..reconstruction.animation import Animation
from ..reconstruction.face_mesh import FaceMesh
from ..views.collection import FaceViews
from .checkpoint import Published
from .face_abstractor import FaceAbstractor
from .image_tower import ImageTower
from .mesh_hierarchy import Topology
from .spiral_net import VertexReducer, VertexSpiralNet

FIRST, MEAN, BEST, CONCATENATED, BY_POSE = COMBINE = (
    "first view",
    "mean of views",
    "best view",
    "concatenate tokens",
    "weighted by pose",
)
# Degrees from the camera at which a view counts 0.6 times a frontal one in "weighted by pose".
_POSE_WIDTH = 30.0
BRANCHES = ("2d", "3d")
_CHUNK = 16  # meshes encoded at a time, which bounds the memory
FORMAT = "fantasyid-identity-1"


@dataclass(frozen=True, eq=False)
class Identity:
    """Who is in the video.

    Attributes:
        face_tokens: (36, K) float32, the 2-D part of the ID descriptor; (36 · views, K) where tokens are concatenated.
        vertex_tokens: (79, K) float32, its 3-D part; (79 · views, K) likewise. A model that was trained on one part
            alone has none, (0, K), of the other.
        image: (512, 512, 3) float32 in 0…1, the aligned reference crop.
        frame_tokens: (T, 79, K) float32, or (T, 79 · views, K), in the place of `vertex_tokens` in each latent frame of
            a video; None: the face does as the prompt says.
    """

    face_tokens: Tensor
    vertex_tokens: Tensor
    image: Tensor
    frame_tokens: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(N, K) what the injection layers attend to: face tokens, then vertex tokens, those of the mesh at rest."""
        return torch.cat([self.face_tokens, self.vertex_tokens])


class IdentityEncoder(nn.Module):
    """Image tower, face abstractor, spiral network and reducer.

    Args:
        branches: which tokens the model was trained on, "2d" and "3d" or one of them.
        template: (V, 3) the mean face, metres, on the CPU: the space and topology of the meshes that it was trained on.
    """

    def __init__(
        self,
        tower: ImageTower,
        abstractor: FaceAbstractor,
        spiral_net: VertexSpiralNet,
        reducer: VertexReducer,
        branches: Sequence[str] = BRANCHES,
        template: Tensor | None = None,
    ):
        super().__init__()
        self.template = template
        self.branches = tuple(branches)
        self.tower = tower
        self.abstractor = abstractor
        self.spiral_net = spiral_net
        self.reducer = reducer

    def face_tokens(self, crops: Tensor) -> Tensor:
        """Aligned crops (N, 512, 512, 3) in 0…1 → face tokens (N, 36, K)."""
        return self.abstractor(self.tower.last_hidden_state(self.tower.preprocess(crops)))

    def vertex_tokens(self, vertices: Tensor, face_tokens: Tensor) -> Tensor:
        """Vertices (B, V, 3) and face tokens (B, 36, K) → vertex tokens (B, 79, K)."""
        return self.reducer(self.spiral_net(vertices, face_tokens))


def build_encoder(
    published: Published,
    tower: ImageTower,
    topology: Topology,
    config: Mapping,
    operations: Operations = TORCH,
) -> IdentityEncoder:
    """The identity encoder from the published transformer's identity tensors, an image tower and a mesh hierarchy.

    Args:
        operations: the layers that all but the tower are built from.

    Raises:
        WeightsError: tensors are missing or do not fit each other.
    """
    return IdentityEncoder(
        tower,
        FaceAbstractor.from_published(published.face_abstractor, int(config.get("face_queries", 36)), operations),
        VertexSpiralNet.from_published(
            published.vertex_spiral_net,
            topology,
            float(config.get("vertex_depth_scale", 0.5)),
            operations,
            str(config.get("vertex_axes", "z")),
        ),
        VertexReducer.from_published(published.vertex_reducer, operations),
        config.get("identity_branches", BRANCHES),
        topology.template,
    ).requires_grad_(False)


@torch.no_grad()
def fuse(
    encoder: IdentityEncoder,
    views: FaceViews,
    mesh: FaceMesh,
    combine: str = "first view",
    device: torch.device | str = "cpu",
    acting: Animation | None = None,
) -> Identity:
    """Compute the identity of the person in `views` with the face shape of `mesh`, in float32 on `device`.

    Args:
        combine: which views' face tokens make the identity; the spiral network sees the same. With one view all are the
            release. "first view": the reference alone, as released. "best view": the one with the highest score.
            "mean of views": their average. "weighted by pose": the average, in which a view counts by its score and by
            how far it looks at the camera. "concatenate tokens": those of all views, each with its own vertex tokens,
            side by side; the video's tokens attend to what suits them.
        acting: the same face in every latent frame of the video, see `dit.acting.per_latent_frame`.

    Raises:
        MeshError: the mesh, or the one that acts, has another topology than the encoder was trained on.
        IdentityError: a face acts whose mesh the model does not look at, or values are not finite.
    """
    if acting is not None and "3d" not in encoder.branches:
        raise IdentityError(
            "This model was trained without the face's shape, so a mesh that moves cannot direct it. Remove the "
            "link to 'animation'."
        )
    weights = view_weights(views, combine).to(device)
    indices = weights.nonzero()[:, 0]
    vertices = mesh.vertices[None].to(device, torch.float32)
    # One view at a time: the memory that a view needs does not grow with their number.
    face_tokens = torch.cat([encoder.face_tokens(views.crops[[i]].to(device, torch.float32)) for i in indices.tolist()])
    if combine != CONCATENATED:
        face_tokens = (weights[indices, None, None] * face_tokens).sum(0, keepdim=True)
    vertex_tokens = torch.cat([encoder.vertex_tokens(vertices, tokens) for tokens in face_tokens.split(1)])
    frame_tokens = None if acting is None else _frame_tokens(encoder, acting, face_tokens)
    every = (face_tokens, vertex_tokens, *(() if frame_tokens is None else (frame_tokens,)))
    if not all(tokens.isfinite().all() for tokens in every):
        raise IdentityError(
            "The identity came out with values that are not finite. The weights or the mesh are damaged; "
            "load the model again, and check the mesh in its preview."
        )
    face_part, vertex_part = (
        tokens.flatten(0, 1) if branch in encoder.branches else tokens.flatten(0, 1)[:0]
        for branch, tokens in zip(BRANCHES, (face_tokens, vertex_tokens), strict=True)
    )
    return Identity(face_part, vertex_part, views.crops[0].float(), frame_tokens)


def _frame_tokens(encoder: IdentityEncoder, acting: Animation, face_tokens: Tensor) -> Tensor:
    """(T, 79 · views, K) of the frames of a mesh, with the face tokens (views, 36, K) on their device."""
    chunks = []
    for first in range(0, len(acting.weights), _CHUNK):
        vertices = acting.vertices(first, first + _CHUNK).to(face_tokens)
        views = [encoder.vertex_tokens(vertices, own.expand(len(vertices), -1, -1)) for own in face_tokens.split(1)]
        chunks.append(torch.cat(views, 1))
    return torch.cat(chunks)


def view_weights(views: FaceViews, combine: str) -> Tensor:
    """(N,) float32 on the CPU: how much each view counts, adding up to 1; 0 for views that are not encoded.

    Raises:
        IdentityError: there is no such way to combine views.
    """
    if combine not in COMBINE:
        raise IdentityError(
            f"There is no way to combine views called '{combine}'; choose one of: {', '.join(COMBINE)}."
        )
    scores = views.scores.detach().float().cpu()
    count = len(scores)
    if combine in (FIRST, BEST):
        chosen = 0 if combine == FIRST else int(scores.argmax())
        return F.one_hot(torch.tensor(chosen), count).float()
    if combine != BY_POSE:
        return torch.full((count,), 1 / count)
    weights = scores.clamp(min=1e-3)
    if views.poses is not None:
        squared_angle = views.poses.detach().float().cpu()[:, :2].square().sum(1)
        weights = weights * (-squared_angle / (2 * _POSE_WIDTH**2)).exp().clamp(min=1e-6)
    return weights / weights.sum()


def save_identity(identity: Identity, path: Path) -> None:
    """Write an identity to a `.safetensors` file. Raises SaveError when the disk refuses it."""
    tensors = {name: value.float().cpu().contiguous() for name, value in vars(identity).items() if value is not None}
    save_tensors(tensors, path, {"format": FORMAT})


def load_identity(path: Path) -> Identity:
    """Read an identity from a `.safetensors` file.

    Raises:
        IdentityError: the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise IdentityError(f"There is no identity file {path}. Save one with the Save Identity node first.")
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise IdentityError(
                    f"{path.name} is not a FantasyID identity file (its format is not {FORMAT}). "
                    "Choose a file that FantasyID Save Identity wrote."
                )
            there = set(file.keys())
            names = [field.name for field in fields(Identity) if field.default is MISSING or field.name in there]
            identity = Identity(**{name: file.get_tensor(name).float() for name in names})
    except SafetensorError as error:
        raise IdentityError(
            f"{path.name} is damaged or no safetensors file ({error}). Save the identity again."
        ) from error
    _check(identity, path.name)
    return identity


def _check(identity: Identity, name: str) -> None:
    face, vertex, image = identity.face_tokens, identity.vertex_tokens, identity.image
    moving = vertex[None] if identity.frame_tokens is None else identity.frame_tokens
    fits = (
        face.ndim == vertex.ndim == 2 and face.shape[1] == vertex.shape[1] and image.ndim == 3 and image.shape[2] == 3
    ) and min(face.numel() + vertex.numel(), image.numel()) > 0
    fits = fits and moving.shape[1:] == vertex.shape and len(moving) > 0
    finite = all(x.isfinite().all() for x in (face, vertex, image, moving))
    if not (fits and finite):
        raise IdentityError(
            f"{name} does not hold a usable identity: face tokens {tuple(face.shape)}, vertex tokens "
            f"{tuple(vertex.shape)}, of frames {tuple(moving.shape)}, image {tuple(image.shape)}, finite: {finite}. "
            "Save it again from Feature Fusion."
        )
