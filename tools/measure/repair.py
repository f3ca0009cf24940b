"""How a face repaired in a video is another person's and still does the same: `python -m tools.measure.repair`.

`sweep`: true clips of TEST people are drawn again by FantasyID-nano with the next person's identity, at several
denoising strengths, and pasted back where the face was tracked. `own`: what nano makes of prompts with a turn of the
head, whose turned frames smear, is drawn again with the same identity. Faces are told by dlib and the 478 landmarks'
pose, in every third frame. A GPU draws, processes follow, paste and measure; minutes.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.face_contours import mouth_opening
from fantasyid_core.detection.face_track import follow
from fantasyid_core.detection.faces import detect
from fantasyid_core.dit.config import FPS
from fantasyid_core.errors import FaceNotFoundError
from fantasyid_core.images import from_pil, to_pil
from fantasyid_core.meters import embedding, likeness
from fantasyid_core.video.face_clip import FaceClip, cut_out, paste
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases, generate
from fantasyid_lab.evaluation.command import DTYPES
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.people.clip import Clip

STRENGTHS = (0.4, 0.5, 0.6, 0.75, 0.9)
OWN_STRENGTHS = (0.3, 0.4, 0.6)  # of which 0.4 was named before
NAMED = 0.4
STEPS, GUIDANCE, AROUND = 20, 4.0, 2.0
EVERY = 3  # frames, of those that are measured
TURNED = 15.0  # degrees of yaw from which on a frame counts as turned
LOT = 100  # people among whom one is to be found
WANTED = {"share of the way": 0.5, "yaw": 0.9}


class Seen(NamedTuple):
    """What a process tells of some frames of a video.

    Attributes:
        vectors: (T, 128) dlib's unit vectors, NaN without a face.
        moves: (T, 3) yaw and pitch in degrees, and how far the mouth is open, likewise.
    """

    vectors: np.ndarray
    moves: np.ndarray


def look(frames: np.ndarray) -> Seen:
    """Read the largest faces of frames (T, H, W, 3) uint8; in a process of its own."""
    video = torch.from_numpy(frames).float() / 255
    landmarks = torch.full((len(video), 5, 2), torch.nan)
    moves = torch.full((len(video), 3), torch.nan)
    for number, frame in enumerate(video):
        for face in detect(frame)[:1]:
            face = ensure_dense_landmarks(face)
            landmarks[number] = face.landmarks
            assert face.dense_landmarks is not None
            moves[number] = torch.tensor([face.pose.yaw, face.pose.pitch, float(mouth_opening(face.dense_landmarks))])
    vectors = embedding.embed(embedding.load("dlib"), video, landmarks).vectors
    return Seen(vectors.numpy(), moves.numpy())


def cut(frames: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """The face's clip of frames (T, H, W, 3) uint8 as arrays, see `FaceClip`; None where no face is found."""
    video = torch.from_numpy(frames).float() / 255
    try:
        track = follow(video, FPS)
    except FaceNotFoundError:
        return None
    clip = cut_out(video, track, *video.shape[1:3], around=AROUND)
    return cases.as_bytes(clip.frames).numpy(), clip.to_clip.numpy(), clip.mask.numpy()


def paste_and_look(frames: np.ndarray, clip: tuple[np.ndarray, ...], drawn: np.ndarray) -> Seen:
    """Put a clip that was drawn again (T, H, W, 3) uint8 back and read every third frame."""
    video, own = torch.from_numpy(frames).float() / 255, torch.from_numpy(clip[0]).float() / 255
    size = (video.shape[0], video.shape[1], video.shape[2])
    place = FaceClip(own, torch.from_numpy(clip[1]), torch.from_numpy(clip[2]), size)
    pasted, mask = paste(video, place, torch.from_numpy(drawn).float() / 255)
    assert torch.equal(pasted[mask == 0], video[mask == 0]), "what is outside of the mask stays"
    return look(cases.as_bytes(pasted[::EVERY]).numpy())


def one_thread() -> None:
    """A process leaves the other cores to the others."""
    torch.set_num_threads(1)


@dataclass(frozen=True, eq=False)
class Video:
    """What was read of N videos.

    Attributes:
        vectors: (N, T, 128); moves: (N, T, 3); see `Seen`.
    """

    vectors: Tensor
    moves: Tensor

    @classmethod
    def of(cls, seen: Sequence[Seen]) -> "Video":
        """Of what processes told."""
        vectors, moves = (np.stack(part) for part in zip(*seen, strict=True))
        return cls(torch.from_numpy(vectors), torch.from_numpy(moves))

    @cached_property
    def face(self) -> Tensor:
        """(N, 128) unit vectors, the mean of all frames."""
        return likeness.average(self.vectors)

    @cached_property
    def turned(self) -> Tensor:
        """(N, 128) the mean of the frames in which the head is turned; NaN where it is in none."""
        away = self.moves[..., 0].abs() >= TURNED
        return likeness.average(torch.where(away[..., None], self.vectors, torch.nan))


class Bench:
    """Nano on its device, and processes."""

    def __init__(self, device: str, dtype: torch.dtype, pool: ProcessPoolExecutor):
        self.generator: Generator = generate.load(nano.SHIPPED, device, dtype)
        self.device, self.pool, self._began = device, pool, time.perf_counter()

    def say(self, text: str) -> None:
        """A line about what goes on."""
        print(f"{time.perf_counter() - self._began:.0f} s: {text}", file=sys.stderr, flush=True)

    def shown(self, clips: list[Clip]) -> np.ndarray:
        """(N, T, H, W, 3) uint8."""
        return cases.as_bytes(cases.show(clips, self.device).frames).numpy()

    def identities(self, photos: np.ndarray) -> list[Any]:
        """Of photos (N, 1, H, W, 3) uint8."""
        pictures = torch.from_numpy(photos[:, 0]).float() / 255
        return [self.generator.identity(generate.reference(photo, self.device)) for photo in pictures]

    def look(self, videos: np.ndarray) -> Video:
        """All frames of videos (N, T, H, W, 3) uint8."""
        return Video.of(list(self.pool.map(look, videos)))

    def draw(self, requests: Sequence[Request], **sampling: Any) -> np.ndarray:
        """(N, T, H, W, 3) uint8."""
        return self.generator.videos(
            requests, steps=STEPS, guidance=GUIDANCE, guide_identity=True, batch=64, **sampling
        ).numpy()

    def repair(self, videos: np.ndarray, requests: Sequence[Request], strengths: Sequence[float]) -> dict[float, Video]:
        """Videos (N, T, H, W, 3) uint8 with the faces drawn again, by denoising strength."""
        clips = list(self.pool.map(cut, videos))
        self.say(f"{sum(clip is not None for clip in clips)} of {len(clips)} faces followed")
        frames = torch.from_numpy(np.stack([videos[0] if clip is None else clip[0] for clip in clips]))
        start = torch.cat([self.generator.encode(part.float() / 255) for part in frames.split(8)])
        waiting = {}
        for strength in strengths:
            drawn = self.draw(requests, start=start, denoising_strength=strength)
            waiting[strength] = [
                self.pool.submit(look, video[::EVERY])  # a face that is not found stays as it is
                if clip is None
                else self.pool.submit(paste_and_look, video, clip, one)
                for video, clip, one in zip(videos, clips, drawn, strict=True)
            ]
            self.say(f"drawn at {strength:g}")
        return {strength: Video.of([one.result() for one in seen]) for strength, seen in waiting.items()}


def sweep(bench: Bench, people: int, seed: int) -> list[dict[str, Any]]:
    """True clips with the next person's identity: a row for each denoising strength."""
    drawn = cases.draw(people, seed)
    photos, clips = bench.shown([case.reference for case in drawn]), bench.shown([case.target for case in drawn])
    identities = bench.identities(photos)
    requests = [Request(case.target.caption, identities[(i + 1) % people], i) for i, case in enumerate(drawn)]
    repaired = bench.repair(clips, requests, STRENGTHS)
    true, wanted = bench.look(clips[:, ::EVERY]), bench.look(photos).face.roll(-1, 0)
    return [{"denoise": strength} | shares(video, true, wanted) for strength, video in [(0.0, true), *repaired.items()]]


def shares(video: Video, true: Video, wanted: Tensor) -> dict[str, float]:
    """How far clips are another person's, and do what they did.

    Args:
        wanted: (N, 128) the reference of the person whose identity each clip was given, the next one's.
    """
    stranger, truth = (wanted * true.face).sum(1), (wanted * true.face.roll(-1, 0)).sum(1)
    output, first = (wanted * video.face).sum(1), (wanted.roll(1, 0) * video.face).sum(1)
    pairs = [correlations(a, b) for a, b in zip(true.moves, video.moves, strict=True)]
    yaw, pitch, mouth = torch.stack(pairs).nanmedian(0).values.tolist()
    return {
        "share of the way": likeness.normalised_similarity(output, stranger, truth),
        "nearer to the person": float((output > first).float().mean()),
        **{"yaw": yaw, "pitch": pitch, "mouth": mouth},
    }


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """(3,) correlation over the frames (T, 3) that both have; NaN where the first hardly moves (5 degrees, 0.1)."""
    both = (a.isfinite() & b.isfinite()).all(1)
    a, b = a[both], b[both]
    if len(a) < 3:
        return torch.full((3,), torch.nan)
    moving = (a.amax(0) - a.amin(0)) > torch.tensor([5.0, 5.0, 0.1])
    a, b = a - a.mean(0), b - b.mean(0)
    found = (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-9)
    return torch.where(moving, found, torch.nan)


def own(bench: Bench, people: int, seed: int) -> list[dict[str, Any]]:
    """Nano's own videos of those of so many people whose prompt turns the head: a row for before and each repair."""
    lots = [cases.draw(LOT, seed + lot) for lot in range(people // LOT)] or [cases.draw(people, seed)]
    everybody = [case for lot in lots for case in lot]
    turning = [i for i, case in enumerate(everybody) if case.target.labels.turn]
    bench.say(f"{len(turning)} of {len(everybody)} prompts turn the head")
    photos = bench.shown([everybody[i].reference for i in turning])
    identities = bench.identities(photos)
    prompts = [everybody[i].target.caption for i in turning]
    first, again = (
        [Request(p, who, shift + i) for p, who, i in zip(prompts, identities, turning, strict=True)]
        for shift in (0, 1_000_000)
    )
    videos = bench.draw(first)
    repaired = bench.repair(videos, again, OWN_STRENGTHS)
    before = bench.look(videos[:, ::EVERY])
    gallery = bench.look(bench.shown([case.gallery for case in everybody])[:, :: 2 * EVERY]).face
    reference = bench.look(photos).face
    places = torch.tensor(turning)
    rows = []
    for strength, video in [(0.0, before), *repaired.items()]:
        row: dict[str, Any] = {"denoise": strength, "videos": len(turning)}
        for part in ("face", "turned"):
            a, b = getattr(before, part), getattr(video, part)
            counts = a.isfinite().all(1)
            row |= compared(part, a[counts], b[counts], gallery, reference[counts], places[counts], len(lots[0]))
        rows.append(row)
    return rows


def compared(
    part: str, before: Tensor, after: Tensor, gallery: Tensor, reference: Tensor, places: Tensor, lot: int
) -> dict[str, Any]:
    """Re-identification and similarity of n videos before and after, and how sure the difference is.

    Args:
        before, after, reference: (n, 128); gallery: (N, 128) of everybody, in lots.
        places: (n,) who of everybody each is.
    """
    hits = [found(vectors, gallery, places, lot) for vectors in (before, after)]
    gained, lost = int((hits[1] & ~hits[0]).sum()), int((hits[0] & ~hits[1]).sum())
    closer = ((after - before).nan_to_num() * reference).sum(1)
    low, high = interval(closer)
    return {
        f"{part}, re-identified": round(float(hits[1].float().mean()), 3),
        f"{part}, gained": gained,
        f"{part}, lost": lost,
        f"{part}, p": round(mcnemar(gained, lost), 4),
        f"{part}, similarity gained": round(float(closer.mean()), 4),
        f"{part}, interval": [round(low, 4), round(high, 4)],
        f"{part}, videos": len(before),
    }


def found(vectors: Tensor, gallery: Tensor, places: Tensor, lot: int) -> Tensor:
    """(n,) bool, whether each is nearest to its own person of its lot of the gallery."""
    near = (vectors @ gallery.T).nan_to_num(-2.0)
    same_lot = places[:, None] // lot == torch.arange(len(gallery)) // lot
    return near.masked_fill(~same_lot, -3.0).argmax(1) == places


def mcnemar(gained: int, lost: int) -> float:
    """The exact p of as many changes either way, two-sided."""
    changes = gained + lost
    tail = sum(math.comb(changes, k) for k in range(min(gained, lost) + 1)) / 2**changes
    return min(1.0, 2 * tail)


def interval(values: Tensor, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean over (n,) videos, bootstrapped."""
    who = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[who].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def draw_plot(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """The sweep as curves over the denoising strength."""
    from PIL import Image, ImageDraw, ImageFont

    width, height, left, top, right, bottom = 900, 480, 60, 50, 190, 50
    colours = {"share of the way": (190, 60, 50), "yaw": (38, 84, 190), "pitch": (46, 140, 62), "mouth": (214, 112, 20)}
    picture = Image.new("RGB", (width, height), (252, 252, 252))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)

    def place(denoise: float, value: float) -> tuple[float, float]:
        return left + (width - left - right) * denoise, height - bottom - (height - top - bottom) * value

    draw.text((left, 14), "A face drawn again in a video, by denoise", fill=(40, 40, 48), font=font)
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        draw.line((*place(0, tick), *place(1, tick)), fill=(214, 214, 220))
        draw.text((place(0, tick)[0] - 34, place(0, tick)[1] - 9), f"{tick:.1f}", fill=(40, 40, 48), font=font)
        draw.text((place(tick, 0)[0] - 10, place(tick, 0)[1] + 10), f"{tick:.1f}", fill=(40, 40, 48), font=font)
    for name, colour in colours.items():
        points = [place(row["denoise"], min(1.0, max(0.0, row[name]))) for row in rows if row[name] == row[name]]
        draw.line(points, fill=colour, width=3)
        for x, y in points:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        for x, y in points[-1:]:
            draw.text((x + 14, y - 9), name, fill=colour, font=font)
    file.parent.mkdir(parents=True, exist_ok=True)
    to_pil(from_pil(picture)).save(file)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("sweep", "own"), default="sweep")
    parser.add_argument("--people", type=int, help="60 for sweep; 300 for own, in lots of 100")
    parser.add_argument("--seed", type=int, default=0, help="which people of TEST")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of transformer and autoencoder (bf16 on a GPU, else fp32)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that follow and measure (all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="of the sweep")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype or ("bf16" if options.device == "cuda" else "fp32")]
    # Spawned: a fork of a process whose libraries run threads may hang.
    with ProcessPoolExecutor(options.processes, get_context("spawn"), one_thread) as pool:
        bench = Bench(options.device, dtype, pool)
        measure, people = (sweep, 60) if options.what == "sweep" else (own, 300)
        rows = measure(bench, options.people or people, options.seed)
        bench.say("done")
    show(rows)
    if options.json:
        plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # NaN
        options.json.write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    if options.plot:
        draw_plot(rows, options.plot)


if __name__ == "__main__":
    main()
