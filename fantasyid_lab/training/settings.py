"""How a stage is trained: one TOML file per stage, read into frozen dataclasses."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fantasyid_core.errors import TrainingError
from fantasyid_core.io.text_files import read_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class PoolSettings:
    """The pool of rendered people, see `pool.Pool`.

    Attributes:
        holds: how many people; the oldest make room.
        people: that are rendered at a time, and of these `filmed`, a multiple of 4: five clips of four people.
        stills: photos of each, references and pictures to train on.
        first: people who are there before the first step.
        every: steps between two renderings.
        share: of the time that rendering may take.
        frames, size: of a clip; still_size: of a photo, px.
        validation: people, all of them filmed, who are never trained on.
    """

    holds: int = 16000
    people: int = 32
    filmed: int = 8
    stills: int = 4
    first: int = 640
    every: int = 4
    share: float = 0.3
    frames: int = 25
    size: int = 160
    still_size: int = 224
    validation: int = 104

    def same_people(self, other: "PoolSettings") -> bool:
        """Whether a pool of these settings holds what the others ask for; when it grows may differ."""
        return replace(self, first=other.first, every=other.every, share=other.share) == other


@dataclass(frozen=True)
class Settings:
    """One stage's training.

    Attributes:
        stage: vae, face, judge, text, base or identity.
        minutes: after which it ends, 0 for no limit; steps: likewise. Whatever comes first.
        batch: samples per step and process.
        learning_rate: the highest; it rises over `warmup` steps and falls to zero over the run (half a cosine).
        betas, weight_decay, clip_norm: of AdamW, and the largest gradient norm.
        ema: decay of the averaged weights, which are what is exported.
        precision: "bf16" or "no"; off a GPU always "no".
        muon: step the hidden matrices of DiT and text encoder with Muon, the rest with AdamW.
        compile: compile the DiT's blocks where that works; cudnn_benchmark: try convolutions out before using them.
        checkpoint_seconds, log_every (steps), validate_minutes (0: at the end alone).
        start_from: model folder to start from, "" for the run's own; the command's --start-from wins.
        options: of the stage, see its module.
    """

    stage: str
    minutes: float = 0.0
    steps: int = 1_000_000
    batch: int = 64
    learning_rate: float = 3e-4
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    seed: int = 0
    precision: str = "bf16"
    muon: bool = False
    compile: bool = False
    cudnn_benchmark: bool = True
    checkpoint_seconds: float = 60.0
    log_every: int = 20
    validate_minutes: float = 0.0
    start_from: str = ""
    pool: PoolSettings = field(default_factory=PoolSettings)
    options: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path, changes: Sequence[str] = ()) -> Settings:
    """Settings of a TOML file with `key=value` changes, such as `batch=8` or `pool.holds=100`.

    Raises:
        TrainingError: no such file, not TOML, or a key that does not exist.
    """
    if not path.is_file():
        raise TrainingError(f"The configuration {path} is not there; those that ship are in {HERE}.")
    toml = _toml()
    try:
        table = toml.loads(read_text(path))
    except (OSError, ValueError) as error:  # TOMLDecodeError is a ValueError
        raise TrainingError(f"{path} cannot be read as TOML: {error}.") from error
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise TrainingError(f"'{change}' is not of the form key=value.")
        try:
            value = toml.loads(f"x = {text}")["x"]
        except toml.TOMLDecodeError:
            value = text
        *parents, name = key.strip().split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    pool = _made(PoolSettings, table.pop("pool", {}), f"[pool] of {path.name}")
    settings = _made(Settings, table | {"pool": pool}, path.name)
    return replace(settings, betas=tuple(settings.betas))


def _made(kind: type, table: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise TrainingError(f"{where} has the unknown key '{unknown[0]}'; there are: {', '.join(sorted(known))}.")
    try:
        return kind(**table)
    except TypeError as error:
        raise TrainingError(f"{where} is not complete: {error}.") from error


def _toml() -> ModuleType:
    for name in ("tomllib", "tomli"):  # Python 3.10 has no reader of its own
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise TrainingError("Python 3.10 reads TOML with the package 'tomli': python -m pip install tomli")
