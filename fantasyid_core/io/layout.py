"""A model folder in the published layout: where its files lie, and writing it as diffusers and transformers do."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SaveError, WeightsMissingError, cause
from .int8 import pack

TRANSFORMERS = ("transformer_ema", "transformer")  # the release prefers the averaged weights
TOWERS = ("EVA02_CLIP_L_336_psz14_s6B.pt", "image_tower.safetensors")
DECA_NAMES = ("deca_model.tar", "deca_model.safetensors")
FLAME_NAMES = ("generic_model.pkl", "generic_model.safetensors", "flame2023_Open.pkl")
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
    if missing := missing_parts(folder):
        raise WeightsMissingError(
            f"The model {folder} is not complete. Missing: {'; '.join(missing)}. Copy it there: the README says where "
            "to get it."
        )
    found = {part: next(path for path in paths if path.exists()) for part, paths in _places(folder).items()}
    return ModelFiles(**found)


def missing_parts(folder: Path) -> list[str]:
    """Where the parts of a model were looked for that it does not have."""
    places = _places(folder).values()
    return [" or ".join(map(str, paths)) for paths in places if not any(path.exists() for path in paths)]


def _places(folder: Path) -> dict[str, list[Path]]:
    names = {
        "transformer": ("", TRANSFORMERS),
        "vae": ("", ("vae",)),
        "text_encoder": ("", ("text_encoder",)),
        "tower": ("face_encoder", TOWERS),
        "regressor": ("face_model", DECA_NAMES),
        "face_model": ("face_model", FLAME_NAMES),
        "topology": ("face_model", TOPOLOGIES),
    }
    return {part: [folder / subfolder / name for name in files] for part, (subfolder, files) in names.items()}


def save_part(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping | None,
    name: str,
    *,
    shards: int | Callable[[int], int] = 1,
    dtype: torch.dtype | None = None,
    int8: bool = False,
) -> None:
    """Write one part of a model: `name`.safetensors, or about equal shards of it with an index, and `config.json`.

    Files of the same name that an earlier writing left are removed: readers would take them for a part of the model.

    Args:
        shards: how many; or a function of the bytes that are stored.
        dtype: of the floating-point tensors in the file; None keeps theirs.
        int8: store matrices as `int8.pack` does.

    Raises:
        SaveError: the disk refuses a file.
        WeightsError: values that 8 bits cannot stand for.
    """
    tensors = {key: _plain(tensor, dtype) for key, tensor in tensors.items()}
    if int8:
        tensors = pack(tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    shards = shards if isinstance(shards, int) else shards(size)
    files = {f"{name}.safetensors": list(tensors)} if shards == 1 else _shard(tensors, name, shards)
    for file, keys in files.items():
        save_tensors({key: tensors[key] for key in keys}, folder / file)
    index = f"{name}.safetensors.index.json"
    if shards > 1:
        where = {key: file for file, keys in files.items() for key in keys}
        write_json(folder / index, {"metadata": {"total_size": size}, "weight_map": where})
    _remove_stale(folder, name, {*files, index} if shards > 1 else {*files})
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
        raise SaveError(
            f"{path} could not be saved: {error}. Free some disk space or choose another folder."
        ) from error


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach()
    dtype = dtype if tensor.is_floating_point() else None
    return tensor.to("cpu", dtype or tensor.dtype, copy=True).contiguous()


def _shard(tensors: Mapping[str, Tensor], name: str, shards: int) -> dict[str, list[str]]:
    """File name → names of its tensors: the largest tensor first, each into the file that is emptiest so far.

    Whatever the tensors' order, the files are the same.
    """
    sizes, keys = [0] * shards, [[] for _ in range(shards)]
    for key in sorted(tensors, key=lambda key: (-tensors[key].nbytes, key)):
        emptiest = sizes.index(min(sizes))
        sizes[emptiest] += tensors[key].nbytes
        keys[emptiest].append(key)
    return {f"{name}-{i + 1:05}-of-{shards:05}.safetensors": names for i, names in enumerate(keys)}


def _remove_stale(folder: Path, name: str, keep: set[str]) -> None:
    """Remove the safetensors files, shards and index of the part `name` but those that are `keep`."""
    ours = re.compile(re.escape(name) + r"(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in keep:
            try:
                path.unlink()
            except OSError as error:
                raise SaveError(f"{path}, which is replaced, could not be removed: {error}. Remove it.") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, its folder too; under its name it is complete. Raises SaveError."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        save_file(dict(tensors), partial, metadata=dict(metadata or {"format": "pt"}))
        partial.chmod(mode)  # as the system makes files: safetensors' are for their owner alone
        partial.replace(path)
    except Exception as error:  # safetensors reports a full disk with an error type of its own
        with contextlib.suppress(OSError, ValueError):  # a name that cannot be written cannot be removed either
            partial.unlink(missing_ok=True)
        raise SaveError(
            f"{path} could not be saved: {cause(error)}. Free some disk space or choose another folder."
        ) from error
