"""Store a model's matrices in 8 bits: `python -m tools.pack_weights MODEL_FOLDER [--parts transformer …]`.

Rewrites the parts of a folder in the published layout in place, as `fantasyid_core.io.int8` says, all else in fp16.
Whatever reads the model reads it as before. A second run changes nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.errors import FantasyIDError, WeightsMissingError
from fantasyid_core.io import weights
from fantasyid_core.io.layout import TRANSFORMERS, save_part
from fantasyid_lab import nano
from fantasyid_lab.parity import relative_error

FILES = {  # of a part beside the transformer: its one file that holds a network
    "face_encoder": Path("face_encoder", "image_tower.safetensors"),
    "face_model": Path("face_model", "deca_model.safetensors"),
}
PARTS = ("transformer", *FILES)


@dataclass(frozen=True)
class Packed:
    """What packing a part did: bytes of its files before and after, and the relative error of each tensor that is not
    all zeros, which stay so.
    """

    before: int
    after: int
    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """Name and error of the tensor that lost most."""
        return max(self.errors.items(), key=lambda error: error[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="in the published layout; rewritten in place")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which parts (all of these)")
    arguments = parser.parse_args()
    try:
        for part in arguments.parts:
            done = pack_part(arguments.model, part)
            name, error = done.worst
            print(f"{part}: {done.before / 1e6:.2f} MB → {done.after / 1e6:.2f} MB, {error:.2%} rms at most ({name})")
    except FantasyIDError as error:
        raise SystemExit(str(error)) from error


def pack_part(model: Path, part: str) -> Packed:
    """Rewrite one part of a model folder in 8 bits.

    Raises:
        WeightsMissingError, WeightsError: it is not there, damaged, or holds what 8 bits cannot stand for.
        SaveError: the disk refuses a file.
    """
    path = _path(model, part)
    # Copied, as a mapped file cannot be replaced everywhere.
    tensors = {name: _half(tensor) for name, tensor in weights.read(path).items()}
    folder, name, shards = path.parent, path.stem, 1
    if path.is_dir():
        folder, name, shards = path, weights.find(path).name.split(".")[0], nano.shards
    before = _size(path)
    save_part(folder, tensors, None, name, shards=shards, int8=True)
    stored = weights.read(path)
    errors = {name: relative_error(stored[name], tensor) for name, tensor in tensors.items() if tensor.any()}
    return Packed(before, _size(path), errors)


def _path(model: Path, part: str) -> Path:
    names = TRANSFORMERS if part == "transformer" else (FILES[part],)
    found = next((model / name for name in names if (model / name).exists()), None)
    if found is None:
        raise WeightsMissingError(f"{model} has no {' or '.join(map(str, names))}: expected a model's folder.")
    return found


def _half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float16 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _size(path: Path) -> int:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
