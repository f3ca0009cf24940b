"""CLIPScore and MotionScore of a folder of videos: `python -m fantasyid_lab.protocols.scores --videos V [--clip C]`.

CLIPScore as ConsisID's script measures it (ViT-B/32, 16 frames, the mean of the logits), twice: with frames in OpenCV's
BGR, as the published numbers have it, and in RGB, as CLIP was trained. MotionScore is OpenS2V-Eval's `motion_fb`. A
video's prompt stands in NAME.txt beside it. Prints a Markdown table.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.errors import ImageError, TrainingError, WeightsMissingError
from fantasyid_core.optional_import import require

from ..evaluation.command import guarded
from ..training.clip_files import find_clips, measure, read_caption, read_frames

CLIP_FRAMES = 16
_FLOW_WIDTH = 16
_FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}

ScoreFrames = Callable[[Sequence[Tensor], str], float]
"""Frames (H, W, 3) uint8 and a prompt → CLIP's mean logit."""


@dataclass(frozen=True)
class VideoScore:
    """One line of the table; NaN where it was not measured, `error` where the video could not be.

    Attributes:
        clip_bgr: CLIPScore as published tables have it, with red and blue exchanged.
        clip_rgb: CLIPScore as CLIP was trained.
        motion: OpenS2V-Eval's motion_fb.
    """

    video: str
    clip_bgr: float = math.nan
    clip_rgb: float = math.nan
    motion: float = math.nan
    error: str = ""


def clip_frames(total: int) -> list[int]:
    """Which frames CLIPScore looks at: ConsisID divides the length, and does not reach the last frame."""
    return [int(i * total / CLIP_FRAMES) for i in range(CLIP_FRAMES)]


def load_clip(folder: Path, device: str = "cpu") -> ScoreFrames:
    """CLIP ViT-B/32 from a folder in Hugging Face's layout; nothing is downloaded.

    Raises:
        WeightsMissingError: it is not there.
    """
    if not (folder / "config.json").is_file():
        raise WeightsMissingError(
            f"{folder} holds no CLIP: expected config.json, model.safetensors and the tokenizer's files of "
            "openai/clip-vit-base-patch32. Download that folder and name it with --clip."
        )
    transformers = require("transformers", "CLIPScore", names=["CLIPModel", "CLIPProcessor"])
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    processor = transformers.CLIPProcessor.from_pretrained(folder, local_files_only=True)
    model.eval().to(device)

    @torch.inference_mode()
    def score(frames: Sequence[Tensor], prompt: str) -> float:
        pictures = [frame.numpy() for frame in frames]
        inputs = processor(text=prompt, images=pictures, return_tensors="pt", padding=True, truncation=True)
        return float(model(**inputs.to(device)).logits_per_image.mean())

    return score


def motion_score(frames: Iterable[Tensor]) -> float:
    """OpenS2V-Eval's `motion_fb` of frames (H, W, 3) uint8 RGB: how far the mean optical flow is from 0, in pixels.

    Opposite movements cancel: a head that turns and turns back has little.
    """
    cv2 = require("cv2", "MotionScore", "opencv-python-headless", ["calcOpticalFlowFarneback"])
    # Their script reads frames as RGB and turns them grey as if they were BGR.
    grey = (cv2.cvtColor(frame.numpy(), cv2.COLOR_BGR2GRAY) for frame in frames)
    flows = [
        cv2.resize(
            cv2.calcOpticalFlowFarneback(before, after, flow=None, **_FARNEBACK),
            (_FLOW_WIDTH, int(before.shape[0] * (_FLOW_WIDTH / before.shape[1]))),
            interpolation=cv2.INTER_AREA,
        )
        for before, after in pairwise(grey)
    ]
    return abs(float(np.mean(np.array(flows)))) if flows else 0.0


def score_video(video: Path, score_frames: ScoreFrames | None) -> VideoScore:
    """A video's line; without `score_frames` CLIPScore is left out."""
    try:
        total = measure(video)[0]
        numbers, looked_at = clip_frames(total), {}

        def frames() -> Iterator[Tensor]:  # decoded once, for both scores, and not held
            for number, frame in read_frames(video, range(total)):
                if number in numbers:
                    looked_at[number] = frame
                yield frame

        motion = motion_score(frames())
        if score_frames is None:
            return VideoScore(video.name, motion=motion)
        chosen, prompt = [looked_at[number] for number in numbers], read_caption(video)
        bgr = score_frames([frame.flip(-1) for frame in chosen], prompt)
        return VideoScore(video.name, bgr, score_frames(chosen, prompt), motion)
    except TrainingError as error:
        return VideoScore(video.name, error=f"{video.name} cannot be measured: {error}.")


def table(scores: Sequence[VideoScore]) -> str:
    """Markdown: a line per video, and the mean of those that were measured."""
    columns = ("clip_bgr", "clip_rgb", "motion")
    lines = ["| video | CLIPScore (BGR, as published) | CLIPScore (RGB) | MotionScore | remark |", "| --- " * 5 + "|"]
    for score in scores:
        values = " | ".join(_number(getattr(score, column)) for column in columns)
        lines.append(f"| {score.video} | {values} | {score.error} |")
    measured = [score for score in scores if not score.error]
    if measured:
        means = [math.fsum(getattr(score, column) for score in measured) / len(measured) for column in columns]
        lines.append(f"| **mean of {len(measured)}** | {' | '.join(map(_number, means))} | |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def run(options: argparse.Namespace) -> str:
    """Measure, save the JSON, and give the table.

    Raises:
        ImageError: the folder holds no video.
    """
    clips = find_clips(options.videos)
    if not clips:
        raise ImageError(f"{options.videos} holds no video: give the folder that holds them.")
    score_frames = load_clip(options.clip, options.device) if options.clip else None
    scores = [score_video(clip, score_frames) for clip in clips]
    if options.json:
        numbers = [{k: None if v != v else v for k, v in asdict(score).items()} for score in scores]
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return table(scores)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fantasyid_lab.protocols.scores", description=__doc__)
    parser.add_argument("--videos", type=Path, required=True, help="folder of NAME.mp4 and NAME.txt")
    parser.add_argument("--clip", type=Path, help="folder of openai/clip-vit-base-patch32 (else no CLIPScore)")
    parser.add_argument("--device", default="cpu", help="where CLIP runs (cpu)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return guarded(lambda options: print(run(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
