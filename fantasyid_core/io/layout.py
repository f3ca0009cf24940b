"""A model folder in the published layout: where its files lie, and writing it as diffusers and transformers do."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SaveError, WeightsMissingError
from .int8 import pack

TRANSFORMERS = ("transformer_ema", "transformer")  # the release prefers the averaged weights
TOWERS = ("EVA02_CLIP_L_336_psz14_s6B.pt", "image_tower.safetensors")
DECA_NAMES = ("deca_model.tar", "deca_model.safetensors")
FLAME_NAMES = ("generic_model.pkl", "generic_model.safetensors")
TOPOLOGIES = ("topology.safetensors", "transform.pkl")


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie: folders of weights with their `config.json`, and single files."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tower: Path
    regressor: Path
    face_model: Path
    topology: Path


def locate(folder: Path) -> ModelFiles:
    """Find the parts of a model, the release's or one that `nano.write` wrote.

    Raises:
        WeightsMissingError: names all that is missing.
    """
    names = {
        "transformer": ("", TRANSFORMERS),
        "vae": ("", ("vae",)),
        "text_encoder": ("", ("text_encoder",)),
        "tower": ("face_encoder", TOWERS),
        "regressor": ("face_model", DECA_NAMES),
        "face_model": ("face_model", FLAME_NAMES),
        "topology": ("face_model", TOPOLOGIES),
    }
    choices = {part: [folder / within / name for name in those] for part, (within, those) in names.items()}
    found = {part: next((path for path in paths if path.exists()), None) for part, paths in choices.items()}
    missing = [" or ".join(map(str, choices[part])) for part, path in found.items() if path is None]
    if missing:
        raise WeightsMissingError(
            f"The model {folder} is not complete. Missing: {'; '.join(missing)}. The README says where to get them."
        )
    return ModelFiles(**found)


def save_part(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping | None,
    name: str,
    *,
    shards: int | Callable[[int], int] = 1,
    dtype: torch.dtype | None = None,
    eight_bits: bool = False,
) -> None:
    """Write one part of a model: `name`.safetensors, or about equal shards of it with an index, and `config.json`.

    Files of the same name that an earlier writing left are removed: readers would take them for a part of the model.

    Args:
        shards: how many; or a function of the bytes that are stored.
        dtype: of the floating-point tensors in the file; None keeps theirs.
        eight_bits: store matrices as `eight_bits.pack` does.

    Raises:
        SaveError: the disk refuses a file.
        WeightsError: values that 8 bits cannot stand for.
    """
    tensors = {key: _plain(tensor, dtype) for key, tensor in tensors.items()}
    if eight_bits:
        tensors = pack(tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    shards = shards if isinstance(shards, int) else shards(size)
    files = {f"{name}.safetensors": list(tensors)} if shards == 1 else _shared_out(tensors, name, shards)
    for file, keys in files.items():
        _save_file({key: tensors[key] for key in keys}, folder / file)
    index = f"{name}.safetensors.index.json"
    if shards > 1:
        where = {key: file for file, keys in files.items() for key in keys}
        write_json(folder / index, {"metadata": {"total_size": size}, "weight_map": where})
    _remove_others(folder, name, {*files, index} if shards > 1 else {*files})
    if config is not None:
        write_json(folder / "config.json", config)


def write_json(path: Path, content: Mapping) -> None:
    """Write a JSON file, its folder too. Raises SaveError when the disk refuses it."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SaveError(f"{path} could not be written: {error}. Free some disk space.") from error


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach()
    dtype = dtype if tensor.is_floating_point() else None
    return tensor.to("cpu", dtype or tensor.dtype, copy=True).contiguous()


def _shared_out(tensors: Mapping[str, Tensor], name: str, shards: int) -> dict[str, list[str]]:
    """File name → names of its tensors: the largest tensor first, each into the file that is emptiest so far.

    Whatever the tensors' order, the files are the same.
    """
    sizes, keys = [0] * shards, [[] for _ in range(shards)]
    for key in sorted(tensors, key=lambda key: (-tensors[key].nbytes, key)):
        emptiest = sizes.index(min(sizes))
        sizes[emptiest] += tensors[key].nbytes
        keys[emptiest].append(key)
    return {f"{name}-{i + 1:05}-of-{shards:05}.safetensors": names for i, names in enumerate(keys)}


def _remove_others(folder: Path, name: str, kept: set[str]) -> None:
    """Remove the safetensors files, shards and index of the part `name` but those that are `kept`."""
    ours = re.compile(re.escape(name) + r"(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in kept:
            try:
                path.unlink()
            except OSError as error:
                raise SaveError(f"{path}, which is replaced, could not be removed: {error}. Remove it.") from error


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(path)
    except Exception as error:  # safetensors reports a full disk with an error type of its own
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SaveError(f"{path} could not be written: {error}. Free some disk space.") from error
