"""`python -m fantasyid_lab.training STAGE|all --out DIR`: train FantasyID-nano, or identity modules on real clips."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fantasyid_core.errors import FantasyIDError, TrainingError
from fantasyid_core.optional_import import require, require_diffusers

from . import settings as configuration
from .options import OPTIONS, RENAMED_STAGES
from .settings import PoolSettings, Settings

STAGES = tuple(OPTIONS)
NEEDED = ("vae", "face", "base")  # by the stages after them
STOPPED = 143  # exit code: asked to end, and able to go on with --resume


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    require("accelerate", "Training", names=["Accelerator"])
    require("transformers", "Training", names=["T5EncoderModel"])
    require_diffusers("Training")
    from .loop import Stopped

    try:
        run(options)
    except Stopped:
        print("Stopped; the same command with --resume goes on from here.")
        return STOPPED
    except FantasyIDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Train the stages that were asked for, one after the other."""
    from .loop import Stopped
    from .run import Run

    for change in options.set:
        if (old := change.partition(".")[0]) in RENAMED_STAGES:
            raise TrainingError(f"--set {change}: the stage '{old}' is called '{RENAMED_STAGES[old]}' now.")
    stages = STAGES if options.stage == "all" else (options.stage,)
    if options.config and options.stage == "all":
        raise TrainingError("--config is one stage's; with 'all', change single keys: --set base.batch=64.")
    settings_by_stage = {stage: _settings(stage, options) for stage in stages}
    start_from = options.start_from or next(
        (Path(s.start_from) for s in settings_by_stage.values() if s.start_from), None
    )
    on_clips = options.stage != "all" and settings_by_stage[options.stage].trains_on_clips
    if on_clips and start_from is None and not (options.out / "FantasyID-nano").is_dir():
        raise TrainingError("Training on clips goes on from a trained model: name its folder with --start-from.")
    whole = Run(options.out, tiny=options.tiny, resume=options.resume, start_from=start_from)
    for stage in stages:
        if options.resume and whole.is_done(stage):
            continue
        try:
            whole.train(settings_by_stage[stage])
        except Stopped:
            raise
        except Exception as error:  # what was trained before stays, and is of use
            logging.error("Stage %s failed: %s", stage, error, exc_info=not isinstance(error, FantasyIDError))
            if stage in NEEDED or stage == stages[-1]:
                raise


def _settings(stage: str, options: argparse.Namespace) -> Settings:
    own = [change.removeprefix(f"{stage}.") for change in options.set if _concerns(change, stage)]
    path = options.config or configuration.HERE / f"{stage}.toml"
    settings = configuration.read(path, own)
    settings = replace(settings, minutes=settings.minutes * options.minutes_scale)
    return _tiny(settings, own) if options.tiny else settings


def _concerns(change: str, stage: str) -> bool:
    """Whether a `--set` is for this stage: those that begin with another stage's name are not."""
    head = change.partition("=")[0].partition(".")[0]
    return head == stage or head not in STAGES


def _tiny(settings: Settings, changes: Sequence[str]) -> Settings:
    """Sizes for tests on a CPU; what was changed by hand stays."""
    people = {"capacity": 4, "people": 4, "with_video": 4, "stills": 2, "prefill": 4, "validation": 4}
    pool = PoolSettings(**people, refresh_every=8, share=0.0, frames=9, size=32, still_size=64)
    changed = {change.partition("=")[0] for change in changes}
    small = {"batch": 4, "steps": 6, "warmup": 2, "log_every": 2, "precision": "no", "compile": False, "ema": 0.9}
    return replace(settings, pool=pool, **{name: value for name, value in small.items() if name not in changed})


def _stage(name: str) -> str:
    if name in RENAMED_STAGES:
        raise argparse.ArgumentTypeError(f"the stage '{name}' is called '{RENAMED_STAGES[name]}' now")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fantasyid_lab.training", description=__doc__)
    add = parser.add_argument
    add("stage", type=_stage, choices=[*STAGES, "all"])
    add("--out", type=Path, required=True, help="the run's folder; the model is written to FantasyID-nano in it")
    add("--config", type=Path, help="configuration of the stage; by default the one that ships")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key, such as batch=8 or base.batch=8")
    add("--resume", action="store_true", help="go on from the last checkpoint; finished stages are skipped")
    add("--start-from", type=Path, help="model folder to start from (identity stage: the published model)")
    add("--minutes-scale", type=float, default=1.0, help="factor on every stage's minutes")
    add("--tiny", action="store_true", help="sizes for trying the commands out on a CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
