"""How a stage is trained: one TOML file per stage, read into frozen dataclasses."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fantasyid_core.errors import TrainingError
from fantasyid_core.io.text_files import read_text

from .options import OPTIONS, RENAMED_STAGES, IdentityOptions, Options

Kind = TypeVar("Kind")
RENAMED = {  # keys that older configurations have, and what they are called now
    "balanced": "loss_weighting",
    "dit_rate": "dit_lr_mult",
    "encoder_rate": "encoder_lr_mult",
    "every": "refresh_every",
    "filmed": "with_video",
    "first": "prefill",
    "fresh": "new_per_step",
    "holds": "capacity",
    "identity_dropped": "identity_dropout",
    "late": "high_noise_fraction",
    "mesh_rate": "mesh_lr_mult",
    "structure_block": "landmark_block",
    "structure_weight": "landmark_weight",
    "text_dropped": "text_dropout",
}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class PoolSettings:
    """The pool of rendered people, see `pool.Pool`.

    Attributes:
        capacity: how many people; the oldest make room.
        people: that are rendered at a time, and of these `with_video`, a multiple of 4, in clips: five of four people.
        stills: photos of each, references and pictures to train on.
        prefill: people who are there before the first step.
        refresh_every: steps between two renderings.
        share: of the time that rendering may take.
        frames, size: of a clip; still_size: of a photo, px.
        variety: share of photos with fuller or flatter hair, busy walls, lamps from anywhere, each (`people.variety`).
        validation: people, all of them filmed, who are never trained on.
    """

    capacity: int = 16000
    people: int = 32
    with_video: int = 8
    stills: int = 4
    prefill: int = 640
    refresh_every: int = 4
    share: float = 0.3
    frames: int = 25
    size: int = 160
    still_size: int = 224
    variety: float = 0.0
    validation: int = 104

    def same_people(self, other: "PoolSettings") -> bool:
        """Whether a pool of these settings holds what the others ask for; when it is refreshed may differ."""
        return replace(self, prefill=other.prefill, refresh_every=other.refresh_every, share=other.share) == other


@dataclass(frozen=True)
class Settings:
    """One stage's training.

    Attributes:
        stage: vae, face, attributes, text, base, identity or distil.
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
        options: of the stage, see `options`.
    """

    stage: str
    options: Options
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

    @property
    def trains_on_clips(self) -> bool:
        """Whether the stage reads a folder of real clips, and no people are rendered."""
        return isinstance(self.options, IdentityOptions) and bool(self.options.data)


def read(path: Path, changes: Sequence[str] = ()) -> Settings:
    """Settings of a TOML file with `key=value` changes, such as `batch=8` or `pool.capacity=100`.

    Raises:
        TrainingError: no such file, not TOML, no such stage, a key that does not exist, or a value of another type.
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
            if not isinstance(inner, dict):
                raise TrainingError(f"'{change}' sets a key of '{parent}', which {path.name} has as {inner!r}.")
        inner[name] = value
    stage = table.get("stage")
    if stage in RENAMED_STAGES:
        raise TrainingError(f"{path} is for the stage '{stage}', which is called '{RENAMED_STAGES[stage]}' now.")
    if stage not in OPTIONS:
        raise TrainingError(f"{path} is for the stage '{stage}'; there are {', '.join(OPTIONS)}.")
    pool = parse(PoolSettings, table.pop("pool", {}), f"[pool] of {path.name}")
    options = parse(OPTIONS[stage], table.pop("options", {}), f"[options] of {path.name}")
    return parse(Settings, table | {"pool": pool, "options": options}, path.name)


def parse(kind: type[Kind], table: Mapping[str, Any], where: str) -> Kind:
    """A table of TOML as a dataclass; lists become tuples, whole numbers floats where the dataclass has them.

    Args:
        where: what an error calls the table.

    Raises:
        TrainingError: a key that the dataclass has not, or a value of another type.
    """
    types = get_type_hints(kind)
    if not isinstance(table, Mapping):
        raise TrainingError(f"{where} is not a table of keys: {table!r}. Known keys: {', '.join(sorted(types))}.")
    if unknown := sorted(set(table) - set(types)):
        if (now := RENAMED.get(unknown[0])) in types:
            raise TrainingError(f"{where} has the key '{unknown[0]}', which is called '{now}' now.")
        raise TrainingError(f"{where} has the unknown key '{unknown[0]}'; there are: {', '.join(sorted(types))}.")
    return kind(**{key: _typed(value, types[key], f"{where}: '{key}'") for key, value in table.items()})


NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _typed(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        variadic = inner[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (variadic or len(value) == len(inner)):
            count = "" if variadic else f"{len(inner)} "
            raise TrainingError(f"{where} must be a list of {count}values, each {NAMES[inner[0]]}; got {value!r}.")
        return tuple(_typed(x, inner[0], where) for x in value)
    if is_dataclass(kind) and not isinstance(value, kind):
        return parse(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in NAMES and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise TrainingError(f"{where} must be {NAMES[kind]}; got {value!r}.")
    return value


def _toml() -> ModuleType:
    for name in ("tomllib", "tomli"):  # Python 3.10 has no reader of its own
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise TrainingError("Python 3.10 reads TOML with the package 'tomli': python -m pip install tomli")
