"""Weights files: reading them without a second copy in memory, and loading them strictly.

Safetensors and PyTorch files are memory-mapped: a tensor that nobody uses is never read from the disk.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import WeightsError, WeightsMissingError, cause
from .formats import AGAIN, is_safetensors, refuse_foreign
from .int8 import unpack
from .listing import has_suffix, is_hidden
from .text_files import read_text

BASE_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")  # as diffusers and transformers call their files
SAFETENSORS = (".safetensors", ".sft")
PICKLED = (".bin", ".pt", ".pth", ".tar", ".ckpt")
INDEX = ".index.json"
OpenFile = Callable[[Path], dict[str, Tensor]]
CONFIG = "config_json"  # a tensor: the bytes of a `config.json`, for files whose header another program writes


def find(folder: Path | str) -> Path:
    """The one weights file (or index of shards) of a folder as diffusers or transformers write it.

    Raises:
        WeightsMissingError: no folder, no weights in it, or several files of which none has a usual name.
    """
    folder = Path(folder)
    suffixes = (".safetensors", ".safetensors" + INDEX, ".bin", ".bin" + INDEX)
    usual = [folder / (base + suffix) for suffix in suffixes for base in BASE_NAMES]
    if not folder.is_dir():
        raise WeightsMissingError(
            f"The folder {folder} is not there: expected weights in it, such as {usual[0].name}. Copy or download it."
        )
    files = sorted(file for file in folder.iterdir() if file.is_file() and not is_hidden(file.name))
    by_kind = ([f for f in files if has_suffix(f, kind)] for kind in (SAFETENSORS, PICKLED))
    single = [kind[0] for kind in by_kind if len(kind) == 1]
    found = [file for file in usual if file.is_file()] + single
    if not found:
        held = ", ".join(file.name for file in files[:8]) or "nothing"
        raise WeightsMissingError(
            f"No weights in {folder}: expected {usual[0].name}, but the folder holds {held}. Copy or download it again."
        )
    return found[0]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, memory-mapped."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def read(path: Path | str, open_file: OpenFile = read_safetensors) -> dict[str, Tensor]:
    """Tensors of a file, or of the folder that holds one or its shards: name → tensor on the CPU, memory-mapped.

    Nested dictionaries of a PyTorch file get dotted names; what is no tensor in it is left out. What is stored in 8
    bits (`int8`) comes as fp16, in memory of its own.

    Args:
        open_file: gives the tensors of one safetensors file; whoever streams weights has a reader of its own.

    Raises:
        WeightsMissingError: no such file or folder, or a shard is missing.
        WeightsError: not a weights file, truncated, or refused because it would run code; 8 bits without their scales.
    """
    path = Path(path)
    if not path.is_file():
        if path.suffix and not path.is_dir():
            raise WeightsMissingError(f"The weights file {path} is not there. Copy or download it there.")
        path = find(path)
    tensors = _read_shards(path, open_file) if path.name.endswith(INDEX) else _read_file(path, open_file)
    try:
        return unpack(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_config(folder: Path | str) -> dict[str, Any]:
    """`config.json` of a model folder.

    Raises:
        WeightsMissingError, WeightsError: it is not there, or not a JSON object.
    """
    return _read_json(Path(folder) / "config.json")


def known_entries(kind: type, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Of a `config.json` the fields of a dataclass; others, such as diffusers' version, are left out.

    Args:
        fixed: what could be otherwise, and in no published model is.

    Raises:
        ValueError: one of these is otherwise.
    """
    other = [f"{name} {config[name]}" for name, value in fixed.items() if config.get(name, value) != value]
    if other:
        raise ValueError(f"its {', '.join(other)} are not CogVideoX's")
    known = {field.name for field in fields(kind)}
    return {name: value for name, value in config.items() if name in known}


def read_metadata(path: Path | str) -> dict[str, str]:
    """The free-text header of a safetensors file; empty for other files."""
    if not has_suffix(path, SAFETENSORS):
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(Path(path), error) from error


def embedded_config(path: Path | str) -> dict[str, Any] | None:
    """The `config.json` that a single safetensors file may carry in its header, as `config`; None without one.

    Raises:
        WeightsError: the header holds something else there.
    """
    text = read_metadata(path).get("config")
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"The configuration in the header of {path} is no JSON object: {error}. "
            "Use the model's folder with its config.json instead."
        ) from error


def with_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """These tensors and one more that holds a `config.json`, which `take_config` finds."""
    text = json.dumps(dict(config)).encode()
    return {**tensors, CONFIG: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def take_config(tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """Remove from `tensors` what `with_config` added and return the configuration; None without one.

    Raises:
        WeightsError: the tensor holds something else.
    """
    if CONFIG not in tensors:
        return None
    try:
        return dict(json.loads(bytes(tensors.pop(CONFIG).tolist())))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"The tensor {CONFIG} holds no configuration ({cause(error)}): save the model again."
        ) from error


@contextmanager
def configured(what: str) -> Iterator[None]:
    """Around what builds a module from a `config.json`: values that make no such module raise WeightsError."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(
            f"This config.json does not describe a {what} ({cause(error)}): copy or download it again."
        ) from error


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    ignore: Iterable[str] = (),
    late: Mapping[str, torch.Size] = {},
    what: str = "model",
) -> None:
    """Give `module` (may be on the meta device) these tensors as its parameters and buffers: no copy, dtype kept.

    Args:
        ignore: beginnings of names that may be missing or left over.
        late: shapes of parameters that the module does not have yet, and makes as it loads them.
        what: the module's name in the error.

    Raises:
        WeightsError: names are missing or left over, or a shape differs.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()} | dict(late)
    check_fit(expected, {name: tensor.shape for name, tensor in tensors.items()}, ignore=ignore, what=what)
    matching = {name: tensors[name] for name in expected if name in tensors}
    module.load_state_dict(matching, strict=False, assign=True)


def check_fit(
    expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], *, ignore: Iterable[str] = (), what: str
) -> None:
    """Raise WeightsError where names are missing or left over, or a shape differs.

    Args:
        ignore: beginnings of names that may be missing or left over.
        what: the module's name in the error.
    """
    ignored = tuple(ignore)
    missing = [name for name in expected if name not in found and not name.startswith(ignored)]
    unknown = [name for name in found if name not in expected and not name.startswith(ignored)]
    shapes = [
        f"{name} expected {tuple(expected[name])} found {tuple(shape)}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, kind in ((missing, "missing"), (unknown, "left over"), (shapes, "of another shape"))
        if names
    ]
    if problems:
        raise WeightsError(
            f"These weights are not of this {what}: of {len(expected)} tensors {'; '.join(problems)}. "
            "Check that the file belongs to this model and that config.json lies beside it."
        )


def _read_file(path: Path, open_file: OpenFile) -> dict[str, Tensor]:
    refuse_foreign(path)
    has_header = is_safetensors(path)
    has_name = has_suffix(path, SAFETENSORS)
    if has_name and has_header is False:  # PyTorch itself goes by the name
        raise WeightsError(f"{path} is a PyTorch file, though its name says safetensors: rename it to end with .bin.")
    return _opened(path, open_file) if has_name or has_header else _read_pickled(path)


def _opened(path: Path, open_file: OpenFile) -> dict[str, Tensor]:
    try:
        return open_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # KeyError: a type ComfyUI does not know
        raise _unreadable(path, error) from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before PyTorch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        global_name = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error))
        raise WeightsError(
            f"{path} was refused: it is no weights file, or holds more than tensors and could run code when loaded"
            f"{f' (it names {global_name[1]})' if global_name else ''}. Nothing of it was executed. {AGAIN}"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way
        raise _unreadable(path, error) from error
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors. "
            "Use a file of weights, not of a whole program."
        )
    return dict(_flatten(content))


def _flatten(content: Mapping, prefix: str = "") -> Iterable[tuple[str, Tensor]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()


def _read_shards(index: Path, open_file: OpenFile) -> dict[str, Tensor]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise WeightsError(
            f"{index} names no shards: expected an object 'weight_map' of tensor name to file name. "
            "Copy or download it again."
        )
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        if not re.fullmatch(r"[\w.-]+", shard):
            raise WeightsError(
                f"{index} names the shard '{shard}', which is not a file name of its own folder. "
                "Copy or download it again."
            )
        if not (index.parent / shard).is_file():
            raise WeightsMissingError(
                f"The shard {index.parent / shard} is not there, but {index.name} lists it: copy or download it too."
            )
        tensors |= _read_file(index.parent / shard, open_file)
    absent = [name for name in names if name not in tensors]
    if absent:
        raise WeightsError(
            f"The shards of {index} lack {len(absent)} tensors that it lists, such as {absent[0]}. "
            "Copy or download it again."
        )
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsMissingError(f"{path} is not there: it is part of the model's folder, copy or download it too.")
    try:
        content = json.loads(read_text(path))
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} is not valid JSON ({cause(error)}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path} holds a {type(content).__name__}, expected a JSON object. Copy or download it again."
        )
    return content


def _unreadable(path: Path, error: Exception) -> WeightsError:
    size = path.stat().st_size if path.is_file() else 0
    return WeightsError(
        f"{path} ({size:,} bytes) cannot be read: truncated or not a weights file ({cause(error)}). "
        "Copy or download it again."
    )
