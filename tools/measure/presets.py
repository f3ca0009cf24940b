"""What the presets of Apply FantasyID and the Sampler do to FantasyID-nano's videos: `python -m tools.measure.presets`.

Every preset makes the videos of the same unseen people and prompts from the same seeds; they stand side by side with
the measures of docs/evaluation.md. `--json docs/results/presets.json`, then `python -m tools.results`, puts them into
the documents and help pages. `--save-frames DIR --no-measuring`, then `--load-frames DIR`, measures elsewhere.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from fantasyid_core.dit.injection import Injection
from fantasyid_core.sampling.presets import PRESETS, Preset
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases, generate, runs, tables
from fantasyid_lab.evaluation.command import (
    DTYPES,
    add_options,
    device_of,
    guarded,
    heading,
    measure_tables,
    say,
    settings_of,
)
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.evaluation.measure import Outputs
from fantasyid_lab.evaluation.runs import Run
from fantasyid_lab.evaluation.saved_frames import Settings

GUIDANCE = 4.0  # that FantasyID-nano is made for


def make(generator: Generator, drawn_cases: Sequence[cases.Case], settings: Settings, batch: int) -> list[Run]:
    """A run of every preset."""
    say("Making identities from the reference photos")
    photos = cases.show([case.reference for case in drawn_cases], generator.device).frames[:, 0]
    identities = [generator.identity(generate.reference(photo, generator.device)) for photo in photos]
    requests = [
        Request(case.target.caption, who, 1000 * settings.seed + i)
        for i, (case, who) in enumerate(zip(drawn_cases, identities, strict=True))
    ]
    made = []
    for name, preset in PRESETS.items():
        say(f"Making {len(requests)} videos: {name}")
        own = replace(settings, guidance=GUIDANCE * preset.guidance, guide_identity=preset.guide_identity, mode=name)
        videos = generator.videos([applied(x, preset) for x in requests], batch=batch, **own.sampling)
        made.append(Run(name, own, Outputs(videos, videos[:0, ::6], videos[:0, ::6])))
    return made


def applied(request: Request, preset: Preset) -> Request:
    """The request with a preset's strength and part of the run; only a part needs to be sampled alone."""
    if preset.start == 0 and preset.end == 1:
        return replace(request, strength=preset.strength)
    return replace(request, injections=(Injection(request.identity.tokens, preset.strength, preset.start, preset.end),))


def run(options: argparse.Namespace) -> None:
    """Make and measure, or one of both."""
    if options.load_frames:
        results = sorted(runs.load(options.load_frames), key=lambda x: list(PRESETS).index(x.variant))
    else:
        settings = settings_of(options, nano.SHIPPED, controls=0)
        drawn_cases = cases.draw(settings.people, settings.seed, settings.frames)
        generator = generate.load(nano.SHIPPED, device_of(options), DTYPES[settings.dtype])
        results = make(generator, drawn_cases, settings, options.batch)
        if options.save_frames:
            runs.save(options.save_frames, results)
    if options.no_measuring:
        return
    file, options.json = options.json, None
    measurements = measure_tables(options, results, nano.SHIPPED / "judge")
    print(heading(results[0].settings, options.embedding))
    print(tables.side_by_side(results, measurements))
    if file:
        rows = [
            {
                "preset": result.variant,
                **{row.key: row.value for row in table if row.key in tables.COLUMNS and row.value == row.value},
            }
            for result, table in zip(results, measurements, strict=True)
        ]
        content = {"settings": asdict(results[0].settings), "embedding": options.embedding, "rows": rows}
        file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure.presets", description=__doc__)
    add_options(parser)
    return guarded(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
