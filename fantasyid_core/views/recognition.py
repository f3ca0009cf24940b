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
class Verdict:
    """Tracks by what they show: the person in the reference, somebody else, or it cannot be told."""

    person: list[Track]
    others: list[Track]
    unsure: list[Track]


def tell_apart(reference: Tensor, tracks: Sequence[Track], recogniser: Recogniser) -> Verdict:
    """Sort tracks by whether they show the person of the reference.

    The most similar track is taken first, then those that resemble it or the reference, so that a profile is recognised
    by way of the views between. Two faces of one frame are two people.

    Args:
        reference: (D,) or (N, D) unit vectors of the recogniser.
    """
    known = reference.float().cpu().reshape(-1, reference.shape[-1])
    identities = {track: torch.stack([s.identity for s in track.sightings]) for track in tracks}
    likeness = {track: float((identities[track] @ known.T).max()) for track in tracks}
    person: list[Track] = []
    others: set[Track] = set()
    doubtful: set[Track] = set()
    while True:
        open_tracks = [t for t in tracks if t not in others and t not in doubtful and t not in person]
        if not open_tracks or likeness[best := max(open_tracks, key=likeness.__getitem__)] < recogniser.same:
            break
        beside = [track for track in tracks if track is not best and track.frames & best.frames]
        if any(likeness[t] > likeness[best] - _MARGIN for t in beside if t not in others):
            doubtful.add(best)
            continue
        person.append(best)
        others.update(beside)
        for track in open_tracks:
            likeness[track] = max(likeness[track], float((identities[track] @ identities[best].T).max()))
    left = [track for track in tracks if track not in person]
    different = [t for t in left if t in others or (t not in doubtful and likeness[t] < recogniser.different)]
    return Verdict(
        [track for track in tracks if track in person],
        different,
        [track for track in left if track not in different],
    )
