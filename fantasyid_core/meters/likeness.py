"""Who is in a video: similarity to a reference and between frames, re-identification, normalised similarity.

All take unit vectors of `embedding`; rows of NaN are frames without a face and do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_similarity(vectors: Tensor, reference: Tensor) -> Tensor:
    """Frames (T, D) against a reference (D,) → cosine (T,) in −1…1, NaN where a frame shows no face."""
    return vectors @ reference


def inter_frame_similarity(vectors: Tensor) -> float:
    """Mean cosine of neighbouring frames (T, D) that both show a face: 1 where the face never changes; NaN without."""
    return float((vectors[1:] * vectors[:-1]).sum(1).nanmean())


def average(vectors: Tensor) -> Tensor:
    """Frames (…, T, D) → one unit vector (…, D) of those that show a face; NaN where none does."""
    return F.normalize(vectors.nanmean(-2), dim=-1)


def rank(probes: Tensor, gallery: Tensor) -> Tensor:
    """(N,) how many of N people's gallery entries (N, D) are nearer to each probe (N, D) than its own; 0 is found.

    A probe without a face has N: it is not found. People without a gallery entry never come nearer.
    """
    near = (probes @ gallery.T).nan_to_num(-2.0)
    nearer = (near > near.diagonal()[:, None]).sum(1)
    lost = probes.isnan().any(1) | gallery.isnan().any(1)
    return torch.where(lost, len(probes), nearer)


def reidentification(probes: Tensor, gallery: Tensor) -> float:
    """Share of N people whose probe (N, D) is nearest to their own gallery entry (N, D): top-1, chance 1 / N."""
    return float((rank(probes, gallery) == 0).double().mean())  # 3 of 30 are no more than 0.1


def normalised_similarity(output: Tensor, stranger: Tensor, truth: Tensor) -> float:
    """How far from a stranger (0) to a true render of the person (1) outputs come in similarity to the reference.

    Each (N,) is the similarity of that person's reference to an output, to a stranger and to a fresh true render. Means
    over the people that have all three are compared, as a single person's way can be close to nothing.
    """
    whole = output.isfinite() & stranger.isfinite() & truth.isfinite()
    low = stranger[whole].mean()
    return float((output[whole].mean() - low) / (truth[whole].mean() - low))
