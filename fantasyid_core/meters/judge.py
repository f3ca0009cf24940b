"""Who tells whether a face is the person's: the identity encoder's own tokens, or a face recognition network.

The identity encoder sees a face as the video model is told of it, and every model has one. Recognition networks took
no part in any training, but are optional packages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection.alignment import align
from ..errors import FaceNotFoundError
from ..images import as_photos, resize
from .embedding import EMBEDDINGS, Embedding, embed, locate_small
from .meters import Progress, clear_faces

ENCODER = "identity encoder"
JUDGES = (ENCODER, *EMBEDDINGS)
_CROPS_AT_ONCE = 8
_SHORT_SIDE = 256  # px, at which a face that fills much of the picture is searched
_FORESEEN_SCORE = 0.3  # of the detector: foreseen frames are not sharp yet
_LOOKED_AT = 16  # frames of a finished video, at most


@dataclass(frozen=True, eq=False)
class Judge:
    """Tells how like one person faces are.

    Attributes:
        name: as in `JUDGES`.
        compare: frames (H, W, 3), T of them, and their faces' landmarks (T, 5, 2) px, NaN where there is none →
            similarity (T,), cosine −1…1, NaN likewise.
    """

    name: str
    compare: Callable[[Sequence[Tensor] | Tensor, Tensor], Tensor]


def by_tokens(encode: Callable[[Tensor], Tensor], reference: Tensor) -> Judge:
    """The identity encoder as judge.

    Args:
        encode: aligned crops (N, 512, 512, 3) → face tokens (N, Q, K), as `IdentityEncoder.face_tokens`.
        reference: (Q · views, K) the person's face tokens; of several views the most like one counts.
    """
    reference = reference.float().cpu()

    def compare(frames: Sequence[Tensor] | Tensor, landmarks: Tensor) -> Tensor:
        found = landmarks.isfinite().flatten(1).all(1)
        similarity = torch.full((len(landmarks),), torch.nan)
        if found.any():
            tokens = face_tokens(encode, [frames[i] for i in found.nonzero()[:, 0].tolist()], landmarks[found])
            similarity[found] = token_similarity(tokens, reference)
        return similarity

    return Judge(ENCODER, compare)


def by_embedding(embedding: Embedding, photo: Tensor, landmarks: Tensor | None = None) -> Judge:
    """A face recognition network as judge, by the face of a photo (H, W, 3): that with landmarks (5, 2) px, or the
    largest.

    Raises:
        FaceNotFoundError: the photo shows none.
    """
    [reference] = embed(embedding, [photo], None if landmarks is None else landmarks[None]).vectors
    if not bool(reference.isfinite().all()):
        raise FaceNotFoundError("The reference shows no face to compare with. Use a photo with an upright, lit face.")

    def compare(frames: Sequence[Tensor] | Tensor, landmarks: Tensor) -> Tensor:
        return embed(embedding, frames, landmarks).vectors @ reference

    return Judge(embedding.name, compare)


@torch.no_grad()
def face_tokens(encode: Callable[[Tensor], Tensor], frames: Sequence[Tensor], landmarks: Tensor) -> Tensor:
    """Frames (H, W, 3) and their faces' landmarks (N, 5, 2) px → face tokens (N, Q, K) on the CPU."""
    crops = [align(frame, own.to(frame))[0] for frame, own in zip(frames, landmarks, strict=True)]
    parts = torch.stack(crops).split(_CROPS_AT_ONCE)
    return torch.cat([encode(part).float().cpu() for part in parts])


def token_similarity(tokens: Tensor, reference: Tensor) -> Tensor:
    """Face tokens (N, Q, K) against those of a person (Q · views, K) → cosine (N,), of the most like view.

    Tokens have an order, so each is compared with its own.
    """
    views = reference.unflatten(0, (-1, tokens.shape[1]))
    return F.cosine_similarity(tokens[:, None], views, dim=-1).mean(-1).amax(1)


def judge_foreseen(judge: Judge, takes: Tensor, device: torch.device | str | None = None) -> Tensor:
    """How like the person the faces of N takes' foreseen frames (N, T, H, W, 3) are.

    Args:
        device: where faces are searched.

    Returns:
        (N,) mean similarity over the frames that show a face, NaN where none does.
    """
    frames = as_photos(takes.flatten(0, 1), "foreseen frames")
    scale = min(1.0, _SHORT_SIDE / min(frames.shape[1:3]))
    height, width = (max(1, round(scale * side)) for side in frames.shape[1:3])
    landmarks = locate_small(resize(frames, height, width), _FORESEEN_SCORE, device)
    landmarks = (landmarks + 0.5) / scale - 0.5  # integers are pixel centres
    return judge.compare(frames, landmarks).unflatten(0, takes.shape[:2]).nanmean(1)


@dataclass(frozen=True)
class Verdict:
    """How like the person a finished video's face is.

    Attributes:
        similarity: mean cosine over the frames that show a clear face, NaN where none does.
        seen, looked: how many frames do, of how many that were looked at.
    """

    similarity: float
    seen: int
    looked: int

    def __str__(self) -> str:
        if not self.seen:
            return f"no clear face in any of {self.looked} frames"
        return f"{self.similarity:.3f}, a clear face in {self.seen} of {self.looked} frames"


def judge_video(
    judge: Judge,
    frames: Tensor,
    device: torch.device | str | None = None,
    progress: Progress = lambda: None,
) -> Verdict:
    """Judge the largest faces of a finished video (T, H, W, C), of up to 16 frames evenly over its length.

    Args:
        device, progress: as for `embedding.locate`.

    Raises:
        ImageError: the frames cannot be used.
    """
    count = min(len(frames), _LOOKED_AT)
    chosen = as_photos(frames[torch.linspace(0, len(frames) - 1, count).round().long()], "video")
    landmarks, _ = clear_faces(chosen, device, progress)
    similarity = judge.compare(chosen, landmarks)
    return Verdict(float(similarity.nanmean()), int(similarity.isfinite().sum()), count)


def best_first(scores: Tensor) -> list[int]:
    """Numbers of the videos by their scores (N,), more is better; those without a score (NaN) come last, in order."""
    return scores.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
