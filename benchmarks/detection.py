"""Detection on real photos and head pose on rendered people, as tables: `python -m benchmarks.detection`.

python -m benchmarks.detection [--device cuda] [--insightface MODELS_FOLDER NAME] [--people 200]
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fantasyid_core.detection import insightface, yunet
from fantasyid_core.detection.faces import detect, detect_batch
from fantasyid_lab.people.clip import still
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render
from tools.measure.labelled_faces import count_errors, photos

LIMITS = 60.0, 25.0, 25.0  # degrees of yaw, pitch and roll


def photo_table(device: str, detectors: dict) -> None:
    """Photo, faces there, and for every detector how many it finds, misses, invents, and the milliseconds."""
    print(f"| photo | px | faces there | {' | '.join(f'{name} finds | ms' for name in detectors)} |")
    print("| --- | --- | --- |" + " --- | --- |" * len(detectors))
    total = {name: [0, 0, 0, 0.0] for name in detectors}
    for label in photos():
        photo = label.read().to(device)
        cells = []
        for name, detector in detectors.items():
            run = partial(detect, photo, detector=detector)
            run()
            milliseconds, faces = _timed(run, device)
            boxes, scores = [face.box.tolist() for face in faces], [face.score for face in faces]
            missed, false = count_errors(label, boxes, scores)
            counts = (len(label.people), missed, false, milliseconds)
            total[name] = [a + b for a, b in zip(total[name], counts, strict=True)]
            cells.append(f"{len(label.people) - missed}{' + ' + str(false) + ' false' if false else ''}")
            cells.append(f"{milliseconds:.0f}")
        if label.people:
            size = f"{photo.shape[1]} × {photo.shape[0]}"
            print(f"| {label.name} | {size} | {len(label.people)} | {' | '.join(cells)} |", flush=True)
    for name, (there, missed, false, milliseconds) in total.items():
        print(f"\n{name}: {there} faces, {missed} missed, {false} false above 0.8, {milliseconds:.0f} ms in all")


def pose_table(count: int, device: str) -> None:
    """Errors of yaw, pitch and roll on rendered people that nothing was fitted on."""
    errors, missed = [], 0
    for start in range(0, count, 25):
        seeds = TEST[start : min(start + 25, count)]
        clips = []
        for seed in seeds:
            pose = np.random.default_rng([seed, 77]).uniform(-1, 1, (1, 3)) * LIMITS
            clips.append(replace(still(person(seed), seed), pose=pose.astype(np.float32)))
        drawn = render(clips, 192, device)
        for faces, true in zip(detect_batch(drawn.frames[:, 0]), drawn.pose[:, 0].tolist(), strict=True):
            if not faces:
                missed += 1
                continue
            pose = faces[0].pose
            errors.append([abs(a - b) for a, b in zip((pose.yaw, pose.pitch, pose.roll), true, strict=True)])
    error = torch.tensor(errors)
    print(f"{count} rendered people, {missed} not found; degrees of yaw, pitch, roll:")
    for name, values in (("median", error.median(0).values), ("90 %", error.quantile(0.9, 0))):
        print(f"{name}: " + ", ".join(f"{value:.1f}" for value in values.tolist()))


def _timed(run, device: str):
    """Milliseconds of the second run, and what it returned."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000, result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--insightface", nargs=2, metavar=("FOLDER", "NAME"), help="models/insightface and a package")
    parser.add_argument("--people", type=int, default=0, help="measure pose on that many rendered people instead")
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name() if options.device.startswith('cuda') else 'CPU'}, torch {torch.__version__}\n"
    )
    if options.people:
        pose_table(options.people, options.device)
        return 0
    detectors = {"YuNet": yunet.detect}
    if options.insightface:
        folder, name = options.insightface
        detectors["InsightFace"] = insightface.load(insightface.find_detector(name, Path(folder)))
    photo_table(options.device, detectors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
