"""True renders of the cases, found, embedded and read once: what any number of models is compared with."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fantasyid_core.meters import likeness
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor, read_attributes
from fantasyid_core.meters.embedding import Embedding, embed, locate_small

from . import cases, sharpness
from .cases import Case

EMBED_EVERY = 6  # frames of a video that the embedding sees: every sixth, five of 25


@dataclass(frozen=True, eq=False)
class Truth:
    """What true renders of N cases show.

    Attributes:
        reference, gallery, stranger: (N, D) unit vectors.
        target: (N, T', D) unit vectors of every sixth frame of the clips that the prompts describe, NaN without a face.
        readings: what the attribute regressor reads in all frames of each.
        turning_sharpness: (N,) of these clips, as `sharpness.of_readings`.
        acting: what it reads in true renders of what the people perform; empty where none is asked to.
    """

    reference: Tensor
    gallery: Tensor
    stranger: Tensor
    target: Tensor
    readings: Sequence[AttributeReading]
    turning_sharpness: Tensor
    acting: Sequence[AttributeReading] = ()


def measure_truth(
    drawn_cases: Sequence[Case],
    regressor: AttributeRegressor,
    embedding: Embedding,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Truth:
    """Render the cases' clips on `device`, find and embed the faces, read the frames."""
    say("Rendering the true clips")
    target = cases.show([case.target for case in drawn_cases], device).frames
    say("Embedding their faces, reading their attributes, rendering the other clips")
    with ThreadPoolExecutor(1) as executor:  # while other processes embed
        readings = executor.submit(lambda: [read_attributes(regressor, frames) for frames in target])
        others = executor.submit(
            lambda: [
                cases.show([getattr(case, name) for case in drawn_cases], device, stride=EMBED_EVERY).frames
                for name in ("reference", "gallery", "stranger")
            ]
        )
        target_vectors = vectors(embedding, target[:, ::EMBED_EVERY], device)
        reference, gallery, stranger = (vectors(embedding, frames, device) for frames in others.result())
        gallery, stranger = likeness.average(gallery), likeness.average(stranger)
        read = readings.result()
        turning_sharpness = sharpness.of_readings(target, read)
        return Truth(reference[:, 0], gallery, stranger, target_vectors, read, turning_sharpness)


def vectors(embedding: Embedding, videos: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Small videos (N, T, H, W, 3) uint8 or float 0…1 → unit vectors (N, T, D), NaN without a face."""
    flat = videos.flatten(0, 1)
    if not len(flat):
        return torch.empty(*videos.shape[:2], embedding.width)
    flat = flat.float() / 255 if flat.dtype == torch.uint8 else flat
    return embed(embedding, flat, locate_small(flat, device=device)).vectors.unflatten(0, videos.shape[:2])
