"""`python -m fantasyid_core.evaluation`: measure a model on people and prompts that no training saw."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from .. import nano
from ..errors import FantasyIDError
from ..images import load_photo, to_pil
from ..selection import find_face
from . import cases, embedding, generate, judge, kept, measure, pages
from .cases import Case
from .generate import Generator, Request
from .kept import Settings
from .measure import Outputs, Row
from .processes import shared_out
from .truth import EMBED_EVERY, known

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHEET = 12  # people on the page of pictures
MANY = 30  # people, from whom on it is worth starting processes


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except FantasyIDError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = None
    if options.load_frames:
        settings, outputs = kept.load(options.load_frames)
        drawn = cases.draw(settings.people, settings.seed, settings.frames)
    else:
        controls = options.people if options.controls is None else min(options.controls, options.people)
        settings = Settings(
            people=options.people,
            seed=options.seed,
            controls=controls,
            frames=options.frames,
            steps=options.steps,
            guidance=options.guidance,
            scheduler=options.scheduler,
            model=options.model.name,
            dtype=options.dtype or ("bf16" if device == "cuda" else "fp32"),
            device=torch.cuda.get_device_name() if device == "cuda" else device,
        )
        drawn = cases.draw(settings.people, settings.seed, settings.frames)
        generator = generate.load(options.model, device, DTYPES[settings.dtype])
        outputs = _generated(generator, drawn, settings, options.batch)
    if options.save_frames:
        kept.save(options.save_frames, settings, outputs)
        say(f"Frames are in {options.save_frames}")
    if options.pictures:
        _draw_pages(options, generator, drawn, outputs, settings)
    if options.no_judging:
        return
    reader = judge.load(options.judge or options.model / "judge", device)
    processes = options.processes or (os.cpu_count() if settings.people >= MANY else 1)
    with shared_out(options.embedding, options.embedding_folder, processes) as faces:
        truth = known(drawn, reader, faces, device, say)
        rows = measure.measure(drawn, outputs, truth, reader, faces, device, say)
    print(_heading(settings, options.embedding))
    print(measure.as_text(rows))
    if options.json:
        options.json.write_text(json.dumps(_report(settings, options.embedding, rows), indent=2) + "\n", "utf-8")


def _generated(generator: Generator, drawn: list[Case], settings: Settings, batch: int) -> Outputs:
    """Every case as prompted; the first `controls` of them at strength 0 and with the next one's reference."""
    say("Making identities from the reference photos")
    photos = cases.show([case.reference for case in drawn], generator.device).frames[:, 0]
    identities = [generator.identity(generate.reference(photo, generator.device)) for photo in photos]
    controls = range(settings.controls)
    prompts = [case.asked.caption for case in drawn]
    seeds = [1000 * settings.seed + i for i in range(len(drawn))]
    requests = [
        *(Request(p, who, s) for p, who, s in zip(prompts, identities, seeds, strict=True)),
        *(Request(prompts[i], identities[i], seeds[i], strength=0.0) for i in controls),
        *(Request(prompts[i], identities[(i + 1) % len(controls)], seeds[i]) for i in controls),
    ]
    start = time.perf_counter()
    videos = generator.videos(
        requests,
        frames=settings.frames,
        steps=settings.steps,
        guidance=settings.guidance,
        scheduler=settings.scheduler,
        batch=batch,
        progress=lambda done, of: say(f"{done} of {of} videos, {time.perf_counter() - start:.0f} s"),
    )
    prompted, without, wrong = videos.split([len(drawn), len(controls), len(controls)])
    return Outputs(prompted, *(x[:, ::EMBED_EVERY].contiguous() for x in (without, wrong)))


def _draw_pages(
    options: argparse.Namespace,
    generator: Generator | None,
    drawn: list[Case],
    outputs: Outputs,
    settings: Settings,
) -> None:
    options.pictures.mkdir(parents=True, exist_ok=True)
    shown = drawn[:SHEET]
    references = cases.show([case.reference for case in shown]).frames[:, 0]
    truth = cases.show([case.asked for case in shown]).frames
    lines = [
        pages.Line(references[i], outputs.prompted[i], truth[i], f"{case.asked.person.seed}")
        for i, case in enumerate(shown)
    ]
    _save(pages.page(lines), options.pictures / "unseen_people.jpg")
    if not options.photos:
        return
    generator = generator or generate.load(options.model)
    faces = [find_face(load_photo(path)).face for path in options.photos]
    identities = [generator.identity(face) for face in faces]
    prompt = "A video of a person in a blue shirt in front of a grey background, who smiles and turns to the left."
    requests = [Request(prompt, who, settings.seed + i) for i, who in enumerate(identities)]
    videos = generator.videos(requests, frames=settings.frames, steps=settings.steps, guidance=settings.guidance)
    lines = [
        pages.Line(face.crop, video, None, path.stem)
        for face, video, path in zip(faces, videos, options.photos, strict=True)
    ]
    _save(pages.page(lines), options.pictures / "real_photos.jpg")


def _save(picture: torch.Tensor, path: Path) -> None:
    to_pil(picture).save(path, quality=92)
    say(f"Wrote {path}")


def _heading(made: Settings, judged_by: str) -> str:
    return (
        f"{made.model}: {made.people} people, seed {made.seed}, {made.frames} frames, {made.steps} steps of "
        f"{made.scheduler}, guidance {made.guidance:g}, {made.dtype}, made on {made.device}; faces judged by "
        f"{judged_by}.\n"
    )


def _report(settings: Settings, judged_by: str, rows: list[Row]) -> dict:
    numbers = [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]  # NaN is no JSON
    return {"settings": asdict(settings), "embedding": judged_by, "rows": numbers}


def say(text: str) -> None:
    """A line about what goes on, beside the table."""
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fantasyid_core.evaluation", description=__doc__)
    add = parser.add_argument
    add("--people", type=int, default=8, help="unseen people (8; the table in the docs has 100)")
    add("--seed", type=int, default=0, help="which people and prompts (0)")
    add("--controls", type=int, help="of them, at strength 0 and with a wrong reference too (all)")
    add("--model", type=Path, default=nano.SHIPPED, help="folder in the published layout (the shipped model)")
    add("--judge", type=Path, help="folder of the judge (judge/ in the model's)")
    add("--frames", type=int, default=cases.FRAMES, help="frames of a video, 4 k + 1 (25)")
    add("--steps", type=int, default=20, help="denoising steps (20)")
    add("--guidance", type=float, default=6.0, help="guidance scale (6)")
    add("--scheduler", default="ddim", choices=("ddim", "dpm"), help="ddim repeats whatever the batch (ddim)")
    add("--batch", type=int, default=8, help="videos at a time (8)")
    add("--dtype", choices=DTYPES, help="of transformer and autoencoder (bf16 on a GPU, else fp32)")
    add("--device", help="where videos are made and judged: cuda or cpu (cuda if there is one)")
    add("--embedding", default=embedding.DLIB, choices=embedding.EMBEDDINGS, help="who judges faces (dlib)")
    add("--embedding-folder", type=Path, action="append", default=[], help="where the embedding's model file lies")
    add("--processes", type=int, help="that share the faces' embedding, which computes on one core each (all cores)")
    add("--json", type=Path, help="write the table to this file too")
    add("--pictures", type=Path, help="write pages of pictures into this folder")
    add("--photos", type=Path, nargs="*", default=[], help="real photos for a page of their own")
    add("--save-frames", type=Path, help="keep the generated frames in this folder")
    add("--load-frames", type=Path, help="judge the frames kept in this folder in place of generating")
    add("--no-judging", action="store_true", help="generate only, as where dlib is missing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
