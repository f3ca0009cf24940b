"""Several photos or a video's frames of one person → a small collection of face crops (paper, section 3.1).

Faces are followed over the frames, other people left out, and of the rest those are kept that are sharp and show
poses and expressions which the others do not.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..detection.alignment import align
from ..detection.dense_landmarks import ensure_dense_landmarks
from ..detection.faces import DetectedFace
from ..detection.head_pose import HeadPose
from ..errors import ImageError
from ..images import as_photo
from .appearance import BUILT_IN, Recogniser, describe
from .recognition import assign_identities
from .tracking import Sighting, Tracks, follow, opening

log = logging.getLogger(__name__)

LEAVE_OUT, TRUST = PEOPLE = ("leave others out", "all pictures show this person")
# Two views are near-duplicates if their appearances' cosine is above, and their poses and how far mouth and eyes are
# open (in the units below) nearer.
_SAME_APPEARANCE, _SAME_POSE, _SAME_OPENING = 0.9, 0.4, 0.5
# Degrees of yaw and of pitch, difference of appearance, and of how far mouth and eyes are open, that make two views
# about equally different.
_YAW, _PITCH, _APPEARANCE, _OPENING = 30.0, 20.0, 0.5, (0.4, 0.2)
# Views below this share of the best one's quality are not worth a pose.
_MIN_QUALITY = 0.35


@dataclass(frozen=True, eq=False)
class FaceViews:
    """Views of one person.

    Attributes:
        crops: (N, 512, 512, 3) float32 0…1, FFHQ-aligned, N ≥ 1; the first is the reference.
        scores: (N,) float32 0…1, how well each shows the face.
        poses: (N, 3) float32 yaw, pitch and roll in degrees (see `HeadPose`), or `None` where nobody knows.
        origins: N words on where each comes from, such as "photo", "frame 12", "rendered", "augmented"; may be empty.
        coverage: (N, 512, 512) float32 0…1, where a rendered view shows the person, or `None` where all do everywhere.
        report: what was taken and what was left out, for the artist.
    """

    crops: Tensor
    scores: Tensor
    poses: Tensor | None = None
    origins: tuple[str, ...] = ()
    coverage: Tensor | None = None
    report: str = ""


def collect(
    reference: DetectedFace,
    images: Tensor | Sequence[Tensor] | None = None,
    max_views: int = 8,
    *,
    people: str = LEAVE_OUT,
    recogniser: Recogniser = BUILT_IN,
    min_score: float = 0.6,
    device: torch.device | str | None = None,
) -> FaceViews:
    """The reference and, from further photos or frames, what shows the same person in other ways; `max_views` in all.

    After the reference they come in the order in which they were chosen: always the one that adds most to those before
    it, so that the first k of them are what `max_views` = k gives. The same input gives the same views.

    Args:
        images: (B, H, W, C), a sequence of pictures of any sizes, or None. A frame without a face, or that is not a
            usable picture, is skipped and reported.
        max_views: 1 keeps the reference alone.
        people: "leave others out" takes only faces that are followed from, or certainly look like, the reference; "all
            pictures show this person" takes the largest face of every picture.
        recogniser: tells people apart; the built-in one needs no download, see `appearance`.
        min_score, device: as for `detection.detect`.

    Raises:
        ImageError: `images` is not a batch of pictures, or none of them can be used.
    """
    _check(images, max_views, people)
    crops = [reference.crop]
    chosen: list[Sighting] = []
    report = "1 view: the reference."
    own = torch.stack([reference.crop, reference.crop.flip(1)])
    if images is not None and len(images) and max_views > 1:
        tracks = follow(images, recogniser, min_score=min_score, device=device)
        sightings, assignment_report = _of_person(tracks, recogniser.embed(own), people, recogniser)
        reference = ensure_dense_landmarks(reference, device=device)  # its pose is read as the sightings' then
        appearance = describe(own[:1]).cpu()[0]
        chosen = choose(appearance, reference.pose, sightings, max_views - 1, opening(reference))
        report = _report(tracks, assignment_report, sightings, chosen)
        log.info("FantasyID: %s", report.replace("\n", " "))
        for sighting in chosen:
            image = images[sighting.frame]
            crops.append(align(as_photo(image), sighting.landmarks.to(image.device))[0].to(reference.crop))

    poses = [reference.pose, *(s.pose for s in chosen)]
    return FaceViews(
        torch.stack(crops),
        reference.crop.new_tensor([reference.quality, *(s.quality for s in chosen)]),
        reference.crop.new_tensor([(p.yaw, p.pitch, p.roll) for p in poses]),
        ("photo", *(f"frame {s.frame}" for s in chosen)),
        report=report,
    )


def _check(images: Tensor | Sequence[Tensor] | None, max_views: int, people: str) -> None:
    if max_views < 1:
        raise ImageError(f"max_views is {max_views}; expected at least 1, the reference. Set it to 4, the default.")
    if people not in PEOPLE:
        raise ImageError(
            f"There is no choice '{people}' for people; expected one of: {', '.join(PEOPLE)}. Choose from these."
        )
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ImageError(
            f"The images have shape {tuple(images.shape)}; expected a batch (frames, height, width, channels). "
            "Connect a batch of images."
        )


def _of_person(tracking: Tracks, reference: Tensor, people: str, recogniser: Recogniser) -> tuple[list[Sighting], str]:
    """The sightings of the person, and who was left out in words."""
    if people == TRUST:
        return _largest(tracking), "The largest face of every picture was taken for the person."
    assignment = assign_identities(reference, tracking.tracks, recogniser)
    phrases = [f"{len(assignment.person)} of {len(tracking.tracks)} tracks show the person"]
    if assignment.others:
        phrases.append(f"{len(assignment.others)} somebody else (left out)")
    if assignment.ambiguous:
        phrases.append(
            f"of {len(assignment.ambiguous)} it is not certain (left out; if all pictures show this person alone or "
            f"largest, choose '{TRUST}')"
        )
    return [s for track in assignment.person for s in track.sightings], ", ".join(phrases) + "."


def _largest(tracks: Tracks) -> list[Sighting]:
    largest: dict[int, Sighting] = {}
    for track in tracks.tracks:
        for s in track.sightings:
            if s.frame not in largest or _area(s) > _area(largest[s.frame]):
                largest[s.frame] = s
    return [largest[frame] for frame in sorted(largest)]


def _area(sighting: Sighting) -> float:
    return float((sighting.box[2:] - sighting.box[:2]).prod())


def choose(
    appearance: Tensor,
    pose: HeadPose,
    sightings: Sequence[Sighting],
    count: int,
    opened: Tensor | None = None,
) -> list[Sighting]:
    """At most `count` sightings that are sharp, and unlike the reference (its appearance, pose and, where it is known,
    opening of mouth and eyes) and each other.

    Greedy farthest-point choice: the next is the one whose distance to the nearest of those chosen, in pose,
    appearance and opening, times the square of its quality is largest; of equals the earliest. Near-duplicates of a
    chosen one are never taken.
    """
    min_quality = max((s.quality for s in sightings), default=0.0) * _MIN_QUALITY
    candidates = [s for s in sightings if s.quality >= min_quality]
    if not candidates:
        return []
    appearances = torch.stack([s.appearance for s in candidates])
    angles = torch.tensor([(s.pose.yaw / _YAW, s.pose.pitch / _PITCH) for s in candidates])
    quality = torch.tensor([s.quality for s in candidates]).square()

    unknown = torch.full((2,), torch.nan)
    openings = torch.stack([unknown if s.opening is None else s.opening for s in candidates])

    def distances(appearance: Tensor, angle: Tensor, opened: Tensor) -> Tensor:
        similarity = appearances @ appearance
        turn = (angles - angle).square().sum(1)
        change = ((openings - opened) / torch.tensor(_OPENING)).square().nansum(1)  # what is not known is no change
        distance = (turn + ((1 - similarity) / _APPEARANCE).square() + change).sqrt()
        same = (similarity >= _SAME_APPEARANCE) & (turn < _SAME_POSE**2) & (change < _SAME_OPENING**2)
        return torch.where(same, 0.0, distance)

    own = torch.tensor((pose.yaw / _YAW, pose.pitch / _PITCH))
    nearest = distances(appearance, own, unknown if opened is None else opened)
    chosen: list[Sighting] = []
    while len(chosen) < count:
        gain, i = (nearest * quality).max(0)
        if gain <= 0:
            break
        chosen.append(candidates[int(i)])
        nearest = torch.minimum(nearest, distances(appearances[i], angles[i], openings[i]))
    return chosen


def _report(tracking: Tracks, assignment_report: str, sightings: Sequence[Sighting], chosen: Sequence[Sighting]) -> str:
    """Lines for the artist."""
    lines = [f"{tracking.frames} pictures."]
    if tracking.without_face:
        missing = tracking.without_face
        lines.append(f"No face in {len(missing)} of {tracking.frames}: {_numbers(missing)}; skipped.")
    if tracking.unusable:
        why = next(iter(tracking.unusable.values()))
        lines.append(f"{len(tracking.unusable)} could not be used: {_numbers(list(tracking.unusable))}; skipped. {why}")
    lines.append(assignment_report)
    poses = len({s.bin for s in sightings})
    lines.append(f"{poses} poses of the person seen (steps of 15° in yaw and pitch), {len(chosen)} views added.")
    return "\n".join(lines)


def _numbers(frames: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(str(frame) for frame in frames[:most])
    return f"frame {shown}" + (" …" if len(frames) > most else "")
