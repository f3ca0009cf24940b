"""What the evaluation's commands have in common: options, networks that measure, devices."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fantasyid_core.errors import FantasyIDError
from fantasyid_core.meters import attribute_regressor, embedding

from . import cases
from .measure import Row
from .processes import shared_out
from .runs import Run, measure_runs
from .saved_frames import Settings

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MANY = 30  # people, from whom on it is worth starting processes


def guarded(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command; an error that an artist should read goes to stderr. Returns the exit code."""
    try:
        run(options)
    except FantasyIDError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of generating and measuring videos."""
    add = parser.add_argument
    add("--people", type=int, default=8, help="unseen people (8; the tables in the docs have 100)")
    add("--seed", type=int, default=0, help="which people and prompts (0)")
    add("--frames", type=int, default=cases.FRAMES, help="frames of a video, 4 k + 1 (25)")
    add("--steps", type=int, default=20, help="denoising steps (20)")
    add("--guidance", type=float, default=6.0, help="guidance scale (6)")
    add("--guide-identity", action="store_true", help="guidance leads to the identity as to the prompt")
    add(
        "--references",
        type=int,
        default=1,
        choices=range(1, 9),
        metavar="K",
        help="photos of each person, whose views' mean makes the identity (1)",
    )
    add("--lora", type=Path, metavar="FILE", help="a LoRA of the model, as training distil leaves it")
    add("--acting", action="store_true", help="every person also performs what the next one's clip shows")
    add("--scheduler", default="ddim", choices=("ddim", "dpm"), help="ddim repeats whatever the batch (ddim)")
    add("--batch", type=int, default=8, help="videos at a time (8)")
    add("--dtype", choices=DTYPES, help="of transformer and autoencoder (bf16 on a GPU, else fp32)")
    add("--device", help="where videos are generated and measured: cuda or cpu (cuda if there is one)")
    add(
        "--attribute-regressor",
        "--judge",
        type=Path,
        metavar="DIR",
        help="folder of the attribute regressor (judge/ in the model's, or in the shipped model's)",
    )
    add("--embedding", default=embedding.DLIB, choices=embedding.EMBEDDINGS, help="face recognition network (dlib)")
    add("--embedding-folder", type=Path, action="append", default=[], help="where the embedding's model file lies")
    add("--processes", type=int, help="that share the faces' embedding, which computes on one core each (all cores)")
    add("--json", type=Path, help="write the table to this file too")
    add("--save-frames", type=Path, help="keep the generated frames in this folder")
    add("--load-frames", type=Path, help="measure the frames saved in this folder in place of generating")
    add("--no-measuring", "--no-judging", action="store_true", help="generate only, as where dlib is missing")


def device_of(options: argparse.Namespace) -> str:
    """`--device`, or the GPU if there is one."""
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def settings_of(options: argparse.Namespace, model: Path, controls: int) -> Settings:
    """What the options say of how `model` makes videos."""
    device = device_of(options)
    return Settings(
        people=options.people,
        seed=options.seed,
        controls=min(controls, options.people),
        frames=options.frames,
        steps=options.steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        model=model.name if options.lora is None else f"{model.name} with {options.lora.stem}",
        dtype=options.dtype or ("bf16" if device == "cuda" else "fp32"),
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        guide_identity=options.guide_identity,
        references=options.references,
        acting=options.acting,
    )


def measure_tables(options: argparse.Namespace, runs: Sequence[Run], regressor_folder: Path) -> list[list[Row]]:
    """Measure runs as the options say; the tables are written to `--json` too."""
    device = device_of(options)
    regressor = attribute_regressor.load(options.attribute_regressor or regressor_folder, device)
    processes = options.processes or (os.cpu_count() if runs[0].settings.people >= MANY else 1)
    with shared_out(options.embedding, options.embedding_folder, processes) as faces:
        tables = measure_runs(runs, regressor, faces, device, say)
    if options.json:
        reports = [_report(run, options.embedding, rows) for run, rows in zip(runs, tables, strict=True)]
        content = reports if len(reports) > 1 else reports[0]
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return tables


def heading(settings: Settings, embedding_name: str) -> str:
    """How videos were generated and measured, in a line above a table."""
    identity = " to the identity too" if settings.guide_identity else ""
    photos = f" with {settings.references} photos each" if settings.references > 1 else ""
    return (
        f"{settings.model}: {settings.people} people{photos}, seed {settings.seed}, {settings.frames} frames, "
        f"{settings.steps} steps of {settings.scheduler}, guidance {settings.guidance:g}{identity}, {settings.dtype}, "
        f"made on {settings.device}; face embedding {embedding_name}.\n"
    )


def say(text: str) -> None:
    """A line about what goes on, beside the table."""
    print(text, file=sys.stderr, flush=True)


def _report(run: Run, embedding_name: str, rows: Sequence[Row]) -> dict:
    numbers = [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]  # NaN is no JSON
    return {"variant": run.variant, "settings": asdict(run.settings), "embedding": embedding_name, "rows": numbers}
