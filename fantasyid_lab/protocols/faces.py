"""FaceSim of a folder of videos: `python -m fantasyid_lab.protocols.faces --protocol P --videos V --references R`.

A video's photo is the one whose name its own name begins with: `anna.png` for `anna.mp4`, `anna_3.mp4`, `anna-2.mp4`.
Prints a Markdown table, a line per video, the mean last, and what was read with which files.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fantasyid_core.errors import FantasyIDError, ImageError, TrainingError
from fantasyid_core.images import as_bytes, load_photo
from fantasyid_core.io.listing import files_in
from fantasyid_core.meters import facesim_networks
from fantasyid_core.meters.facesim import PROTOCOLS, FaceSim, Protocol, ReadFace, measure_facesim

from ..evaluation.command import guarded
from ..training.clip_files import find_clips, measure, read_frames

PHOTOS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class VideoScore:
    """One line of the table: a video's file name, its photo's, and what was measured; `error` where it could not be."""

    video: str
    reference: str
    facesim: FaceSim | None
    error: str = ""


def reference_of(video: Path, photos: Sequence[Path]) -> Path:
    """The photo with the longest name that the video's begins with, up to its end or to a sign that is no letter.

    Raises:
        ImageError: there is none.
    """
    fitting = [photo for photo in photos if _begins_with(video.stem, photo.stem)]
    if not fitting:
        raise ImageError(f"{video.name} has no photo: expected one named as its beginning, such as {video.stem}.png.")
    return max(fitting, key=lambda photo: len(photo.stem))


def _begins_with(name: str, beginning: str) -> bool:
    rest = name[len(beginning) :]
    return name.startswith(beginning) and (not rest or not rest[0].isalnum())


def score_video(protocol: Protocol, video: Path, photo: Path, read_face: ReadFace) -> FaceSim:
    """A video's file against a photo's.

    Raises:
        FaceNotFoundError: the photo shows no face.
        ImageError: the photo or the video cannot be read.
    """
    try:
        numbers = protocol.frames_of(measure(video)[0])
        frames = dict(read_frames(video, numbers))
    except TrainingError as error:
        raise ImageError(f"{video.name} cannot be measured: {error}.") from error
    return measure_facesim(
        protocol, as_bytes(load_photo(photo)), (frames[number] for number in numbers), read_face, photo.name
    )


def score_folder(protocol: Protocol, videos: Path, references: Path, read_face: ReadFace) -> list[VideoScore]:
    """Every video of a folder; one that cannot be measured is a line that says why.

    Raises:
        ImageError: the folder holds no video.
    """
    clips, photos = find_clips(videos), files_in(references, PHOTOS)
    if not clips:
        raise ImageError(f"{videos} holds no video (.mp4, .mov, .m4v, .mkv, .webm): give the folder that holds them.")
    return [_score(protocol, clip, photos, read_face) for clip in clips]


def _score(protocol: Protocol, clip: Path, photos: Sequence[Path], read_face: ReadFace) -> VideoScore:
    photo = None
    try:
        photo = reference_of(clip, photos)
        return VideoScore(clip.name, photo.name, score_video(protocol, clip, photo, read_face))
    except FantasyIDError as error:
        return VideoScore(clip.name, photo.name if photo else "", None, str(error))


def table(protocol: Protocol, scores: Sequence[VideoScore], readers: facesim_networks.Readers) -> str:
    """Markdown: a line per video, the mean of those that were measured, and what read them."""
    measured = [score.facesim for score in scores if score.facesim]
    names = list(measured[0].similarity) if measured else []
    lines = [f"| video | {' | '.join([*names, 'frames with a face', 'remark'])} |", "| --- " * (len(names) + 3) + "|"]
    lines += [_line(score, names) for score in scores]
    if measured:
        means = [math.fsum(one.similarity[name] for one in measured) / len(measured) for name in names]
        with_face = math.fsum(one.with_face for one in measured) / len(measured)
        mean = " | ".join(f"**{value:.4f}**" for value in means)
        lines.append(f"| **mean of {len(measured)}** | {mean} | {with_face:.0%} | |")
    files = ", ".join(f"{name} ({digest})" for name, digest in readers.sha256.items())
    notes = [f"{protocol.title}: {protocol.frames} frames of each video.", f"Read with {files}." if files else ""]
    return "\n".join([*lines, "", *(note for note in (*notes, readers.remark) if note)])


def _line(score: VideoScore, names: Sequence[str]) -> str:
    if score.facesim is None:
        return f"| {score.video} |{' |' * (len(names) + 1)} {score.error} |"
    values = " | ".join(f"{score.facesim.similarity[name]:.4f}" for name in names)
    return f"| {score.video} | {values} | {score.facesim.with_face:.0%} | |"


def _entry(score: VideoScore) -> dict:
    found = score.facesim
    numbers = found and {"similarity": found.similarity, "with_face": found.with_face}
    return {"video": score.video, "reference": score.reference, "facesim": numbers, "error": score.error}


def run(options: argparse.Namespace) -> str:
    """Measure, save the JSON, and give the table."""
    protocol = PROTOCOLS[options.protocol]
    readers = facesim_networks.load(options.models, options.device)
    scores = score_folder(protocol, options.videos, options.references, readers.read_face)
    if options.json:
        content = {"protocol": protocol.name, "sha256": readers.sha256, "remark": readers.remark}
        text = json.dumps(content | {"videos": [_entry(score) for score in scores]}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return table(protocol, scores, readers)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fantasyid_lab.protocols.faces", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--references", type=Path, required=True, help="folder of the people's photos")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders with buffalo_l and CurricularFace (else dlib)"
    )
    parser.add_argument("--device", default="cpu", help="where CurricularFace runs (cpu)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return guarded(lambda options: print(run(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
