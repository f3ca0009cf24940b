"""`python -m fantasyid_lab.evaluation`: measure a model on people and prompts that no training saw."""

import argparse
import sys
from pathlib import Path

import torch

from fantasyid_core.detection.selection import find_face
from fantasyid_core.images import load_photo, to_pil

from .. import nano
from . import cases, generate, report, runs, saved_frames, tables
from .cases import Case
from .command import DTYPES, add_options, device_of, guarded, heading, measure_tables, say, settings_of
from .generate import Generator, Request
from .modes import EXACT, parse
from .runs import Run

REPORT_PEOPLE = 12  # people on the report of pictures


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, _parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    generator = None
    if options.load_frames:
        results = runs.load(options.load_frames)
        settings = results[0].settings
        drawn_cases = cases.draw(settings.people, settings.seed, settings.frames)
    else:
        modes = parse(options.modes) if options.modes else (EXACT,)
        controls = options.people if options.controls is None else options.controls
        settings = settings_of(options, options.model, controls if len(modes) == 1 else 0)
        drawn_cases = cases.draw(settings.people, settings.seed, settings.frames)
        generator = generate.load(options.model, device_of(options), DTYPES[settings.dtype], options.lora)
        results = runs.make(generator, drawn_cases, settings, options.batch, say, modes)
    if options.save_frames:
        if len(results) == 1:
            saved_frames.save(options.save_frames, results[0].settings, results[0].outputs)
        else:
            runs.save(options.save_frames, results)
        say(f"Frames are in {options.save_frames}")
    if options.pictures:
        _draw_reports(options, generator, drawn_cases, results[0])
    if options.no_measuring:
        return
    measurements = measure_tables(options, results, options.model / "judge")
    print(heading(settings, options.embedding))
    print(
        tables.one(measurements[0])
        if len(results) == 1
        else tables.side_by_side(results, measurements, _costs(results))
    )


def _costs(results: list[Run]) -> dict[str, dict[str, str]]:
    """What each mode saves and how far it strays."""
    return {
        "latents' error": {run.variant: f"{run.settings.error:.4f}" for run in results},
        "s per video": {run.variant: f"{run.settings.seconds:.3f}" for run in results},
    }


def _draw_reports(options: argparse.Namespace, generator: Generator | None, drawn_cases: list[Case], run: Run) -> None:
    options.pictures.mkdir(parents=True, exist_ok=True)
    report_cases, settings = drawn_cases[:REPORT_PEOPLE], run.settings
    references = cases.show([case.reference for case in report_cases]).frames[:, 0]
    truth = cases.show([case.target for case in report_cases]).frames
    lines = [
        report.Line(references[i], run.outputs.prompted[i], truth[i], f"{case.target.person.seed}")
        for i, case in enumerate(report_cases)
    ]
    _save(report.draw_report(lines), options.pictures / "unseen_people.jpg")
    if not options.photos:
        return
    generator = generator or generate.load(options.model)
    faces = [find_face(load_photo(path)).face for path in options.photos]
    identities = [generator.identity(face) for face in faces]
    prompt = "A video of a person in a blue shirt in front of a grey background, who smiles and turns to the left."
    requests = [Request(prompt, who, settings.seed + i) for i, who in enumerate(identities)]
    videos = generator.videos(requests, **settings.sampling)
    lines = [
        report.Line(face.crop, video, None, path.stem)
        for face, video, path in zip(faces, videos, options.photos, strict=True)
    ]
    _save(report.draw_report(lines), options.pictures / "real_photos.jpg")


def _save(picture: torch.Tensor, path: Path) -> None:
    to_pil(picture).save(path, quality=92)
    say(f"Wrote {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fantasyid_lab.evaluation", description=__doc__)
    add_options(parser)
    add = parser.add_argument
    add("--model", type=Path, default=nano.SHIPPED, help="folder in the published layout (the shipped model)")
    add("--controls", type=int, help="of the people, how many also at strength 0 and with a wrong reference too (all)")
    add("--modes", help="compare ways of computing, such as exact,cache=0.1,fp8,cache=0.1+fp8; without controls")
    add("--pictures", type=Path, help="write reports of pictures into this folder")
    add("--photos", type=Path, nargs="*", default=[], help="real photos for a report of their own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
