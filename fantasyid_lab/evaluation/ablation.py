"""`python -m fantasyid_lab.evaluation.ablation`: models that were trained with parts left out, side by side.

    … full=out/full-0,out/full-1 no_3d=out/no_3d-0,out/no_3d-1

Every folder is a model as `training identity` exports it; a model is named for what its training left out.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from fantasyid_core.errors import FantasyIDError
from fantasyid_core.fusion.identity import BRANCHES
from fantasyid_core.io.weights import read_config

from .. import nano
from . import cases, generate, runs, tables
from .command import DTYPES, add_options, device_of, guarded, heading, measure_tables, say, settings_of
from .runs import Run


@dataclass(frozen=True)
class Variant:
    """One row of the ablation.

    Attributes:
        changes: of `training identity` (`--set`), that make it.
        predicted: what the paper's reasons for the part that is left out would have one expect.
    """

    changes: str
    predicted: str


VARIANTS = {
    "full": Variant("", "the best of identity and motion together"),
    "no_3d": Variant("options.branch_3d=false", "less alike: the 3-D prior is there for the structure of the face"),
    "no_2d": Variant("options.branch_2d=false", "much less alike: shape says nothing of skin, brows and hair"),
    "one_view": Variant("options.multi_view=false", "copy-paste index up, face and head move less"),
    "shared_layer": Variant("options.shared_layer=true", "identity and motion balanced worse"),
    "no_first_frame": Variant("options.first_frame=false", "less alike, copy-paste index down; released with it"),
    "frozen": Variant("options.unfreeze=[]", "as the paper trains: prompts followed as by the base, less alike"),
}
"""The 2-D branch alone is `no_3d`."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, _parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    results = runs.load(options.load_frames) if options.load_frames else _generate(options)
    if options.no_measuring:
        return
    measurements = measure_tables(options, results, nano.SHIPPED / "judge")
    variants = {run.variant for run in results}
    print(heading(results[0].settings, options.embedding))
    predicted = {name: VARIANTS[name].predicted for name in variants & VARIANTS.keys()}
    print(tables.side_by_side(results, measurements, {"the paper would predict": predicted}))


def _generate(options: argparse.Namespace) -> list[Run]:
    """Videos of every model, kept as soon as each is done."""
    models = _models(options.models)
    for variant, folder in models:
        _check(variant, folder)
    results = []
    for variant, folder in models:
        say(f"{variant}: {folder}")
        settings = settings_of(options, folder, controls=0)
        drawn = cases.draw(settings.people, settings.seed, settings.frames)
        generator = generate.load(folder, device_of(options), DTYPES[settings.dtype], options.lora)
        [run] = runs.make(generator, drawn, settings, options.batch, say)
        results.append(replace(run, variant=variant))
        if options.save_frames:
            runs.save(options.save_frames, results[-1:], len(results) - 1)
    return results


def _models(variants: list[str]) -> list[tuple[str, Path]]:
    pairs = [
        (name, folder) for name, _, folders in (x.partition("=") for x in variants) for folder in folders.split(",")
    ]
    if not pairs or not all(name and folder for name, folder in pairs):
        raise FantasyIDError("Name every model as NAME=FOLDER, or NAME=FOLDER,FOLDER for two training seeds.")
    return [(name, Path(folder)) for name, folder in pairs]


def _check(variant: str, folder: Path) -> None:
    """Raise FantasyIDError where the folder's model was not trained as its name says, so far as its files tell."""
    config = read_config(folder / "transformer")
    branches = config.get("identity_branches", list(BRANCHES))
    expected = {"no_3d": ["2d"], "no_2d": ["3d"]}.get(variant, list(BRANCHES))
    first = bool(config.get("first_frame_condition", True))
    if variant in VARIANTS and (branches != expected or (variant == "no_first_frame" and first)):
        raise FantasyIDError(
            f"{folder} is no model of '{variant}': it was trained on the branches {' and '.join(branches)}"
            f"{', with' if first else ', without'} the reference as first frame. Train it with: "
            f"training identity {f'--set {changes}' if (changes := VARIANTS[variant].changes) else ''}."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fantasyid_lab.evaluation.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", help=f"NAME=FOLDER,…; names: {', '.join(VARIANTS)}, or your own")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
