"""Which tracks of a video show the person in the reference. Careful: what is not certain is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .appearance import Recogniser
from .tracking import Track

# Of two faces in one frame at most one is the person; nearer to each other than this they cannot be told apart.
_MARGIN = 0.05


@dataclass(frozen=True, eq=False)
class Assignment:
    """Tracks by what they show: the person in the reference, somebody else, or it cannot be told."""

    person: list[Track]
    others: list[Track]
    ambiguous: list[Track]


def assign_identities(reference: Tensor, tracks: Sequence[Track], recogniser: Recogniser) -> Assignment:
    """Sort tracks by whether they show the person of the reference.

    The most similar track is taken first, then those that resemble it or the reference, so that a profile is recognised
    by way of the views between. Two faces of one frame are two people.

    Args:
        reference: (D,) or (N, D) unit vectors of the recogniser.
    """
    vectors = reference.float().cpu().reshape(-1, reference.shape[-1])
    identities = {track: torch.stack([s.identity for s in track.sightings]) for track in tracks}
    similarity = {track: float((identities[track] @ vectors.T).max()) for track in tracks}
    person: list[Track] = []
    others: set[Track] = set()
    contested: set[Track] = set()
    while True:
        open_tracks = [t for t in tracks if t not in others and t not in contested and t not in person]
        if not open_tracks or similarity[nearest := max(open_tracks, key=similarity.__getitem__)] < recogniser.same:
            break
        simultaneous = [track for track in tracks if track is not nearest and track.frames & nearest.frames]
        if any(similarity[t] > similarity[nearest] - _MARGIN for t in simultaneous if t not in others):
            contested.add(nearest)
            continue
        person.append(nearest)
        others.update(simultaneous)
        for track in open_tracks:
            similarity[track] = max(similarity[track], float((identities[track] @ identities[nearest].T).max()))
    remaining = [track for track in tracks if track not in person]
    different = [t for t in remaining if t in others or (t not in contested and similarity[t] < recogniser.different)]
    return Assignment(
        [track for track in tracks if track in person],
        different,
        [track for track in remaining if track not in different],
    )
