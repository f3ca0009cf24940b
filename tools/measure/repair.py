"""How a face repaired in a video is another person's and still does the same: `python -m tools.measure.repair`.

True clips of TEST people are drawn again by FantasyID-nano with the next person's identity, at several denoising
strengths, and pasted back where the face was tracked. `--make FOLDER` draws them (a GPU takes minutes), `--read FOLDER`
measures them with dlib and the 478 landmarks' pose; without either both are done. Every third frame is measured.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.face_contours import mouth_opening
from fantasyid_core.detection.face_track import follow
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.dit.config import FPS
from fantasyid_core.meters import embedding, likeness
from fantasyid_core.video.face_clip import cut_out, paste
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases, generate
from fantasyid_lab.evaluation.generate import Request

STRENGTHS = (0.4, 0.5, 0.6, 0.75, 0.9)
STEPS, GUIDANCE = 20, 4.0
EVERY = 3  # frames, of those that are kept and measured


def make(people: int, device: str, seed: int) -> dict[str, np.ndarray]:
    """References (N, …), true clips (N, T, …) and for each strength what was pasted, uint8."""
    chosen = cases.draw(people, seed)
    references = cases.show([case.reference for case in chosen], device).frames[:, 0]
    clips = cases.show([case.target for case in chosen], device).frames
    generator = generate.load(nano.SHIPPED, device)
    identities = [generator.identity(generate.reference(photo)) for photo in references]
    tracks = [follow(clip, FPS, device=device) for clip in clips]
    cuts = [cut_out(clip, track, *clip.shape[1:3], around=2.0) for clip, track in zip(clips, tracks, strict=True)]
    start = generator.encode(torch.stack([cut.frames for cut in cuts]))
    requests = [Request(case.target.caption, identities[(i + 1) % people], seed=i) for i, case in enumerate(chosen)]
    found = {"references": cases.as_bytes(references).numpy(), "clips": cases.as_bytes(clips[:, ::EVERY]).numpy()}
    for strength in STRENGTHS:
        drawn = generator.videos(
            requests, steps=STEPS, guidance=GUIDANCE, guide_identity=True, start=start, denoising_strength=strength
        )
        pasted = []
        for clip, cut, one in zip(clips, cuts, drawn.float() / 255, strict=True):
            frames, mask = paste(clip, cut, one)
            assert torch.equal(frames[mask == 0], clip[mask == 0]), "what is outside of the mask stays"
            pasted.append(cases.as_bytes(frames[::EVERY]))
        found[f"{strength:g}"] = torch.stack(pasted).numpy()
    return found


def read(found: dict[str, np.ndarray]) -> None:
    """Print the measures."""
    network = embedding.load("dlib")
    clips, references = (torch.from_numpy(found[name]).float() / 255 for name in ("clips", "references"))
    others = references.roll(-1, 0)  # whose identity each clip is given
    wanted = embed(network, others[:, None])
    true = embed(network, clips)
    stranger, truth = (wanted * true).sum(1), (wanted * true.roll(-1, 0)).sum(1)
    motion = [moves(clip) for clip in clips]
    print(f"{len(clips)} clips\n")
    print("| denoise | share of the way to the person | nearer to the person | yaw | pitch | mouth |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(row("the clips themselves", stranger, stranger, truth, wanted, true, motion, motion))
    for strength in STRENGTHS:
        pasted = torch.from_numpy(found[f"{strength:g}"]).float() / 255
        own = embed(network, pasted)
        moved = [moves(clip) for clip in pasted]
        print(row(f"{strength:g}", (wanted * own).sum(1), stranger, truth, wanted, own, motion, moved))


def row(
    name: str,
    output: Tensor,
    stranger: Tensor,
    truth: Tensor,
    wanted: Tensor,
    own: Tensor,
    before: list[Tensor],
    after: list[Tensor],
) -> str:
    """One line: likeness, and correlations over the frames of each clip, medians."""
    share = likeness.normalised_similarity(output, stranger, truth)
    first = wanted.roll(1, 0)  # of the person who was in the clip
    nearer = float(((wanted * own).sum(1) > (first * own).sum(1)).float().mean())
    pairs = [correlations(a, b) for a, b in zip(before, after, strict=True)]
    yaw, pitch, mouth = torch.stack(pairs).nanmedian(0).values.tolist()
    return f"| {name} | {share:.2f} | {nearer:.2f} | {yaw:.2f} | {pitch:.2f} | {mouth:.2f} |"


def embed(network: embedding.Embedding, videos: Tensor) -> Tensor:
    """(N, D) unit vectors of the faces of videos (N, T, H, W, 3)."""
    return torch.stack([likeness.average(embedding.embed(network, video).vectors) for video in videos])


def moves(video: Tensor) -> Tensor:
    """(T, 3) yaw and pitch in degrees and how far the mouth is open, in the frames of a video; NaN without a face."""
    rows = []
    for frame in video:
        faces = detect(frame)[:1]
        rows.append(_of_face(faces[0]) if faces else torch.full((3,), torch.nan))
    return torch.stack(rows)


def _of_face(face: DetectedFace) -> Tensor:
    face = ensure_dense_landmarks(face)
    points = face.dense_landmarks
    assert points is not None
    return torch.tensor([face.pose.yaw, face.pose.pitch, float(mouth_opening(points))])


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """(3,) correlation over the frames (T, 3) that both have; NaN where the first hardly moves (5 degrees, 0.1)."""
    both = (a.isfinite() & b.isfinite()).all(1)
    a, b = a[both], b[both]
    moving = (a.amax(0) - a.amin(0)) > torch.tensor([5.0, 5.0, 0.1])
    a, b = a - a.mean(0), b - b.mean(0)
    found = (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-9)
    return torch.where(moving, found, torch.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="draw, and write .npz files there, no more")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="measure what such a folder holds")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.read:
        read({file.stem: np.load(file)["values"] for file in arguments.read.glob("*.npz")})
        return
    found = make(arguments.people, device, arguments.seed)
    if arguments.make is None:
        read(found)
        return
    for name, values in found.items():
        np.savez_compressed(arguments.make / f"{name}.npz", values=values)


if __name__ == "__main__":
    main()
