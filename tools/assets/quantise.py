"""Quantise a transformer for ComfyUI: `python -m tools.assets.quantise MODEL_FOLDER FORMAT FILE`, in ComfyUI's Python.

Writes one file for FantasyID Load Model, whose `parts_from` gives the rest of the model. The linear layers of the DiT's
blocks are quantised by ComfyUI's own code (0.19 or newer); all else stays as it is.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.errors import FantasyIDError, SaveError
from fantasyid_core.io import weights
from fantasyid_core.io.layout import locate, save_tensors

from .. import in_process

LAYERS = r"transformer_blocks\.\d+\.(attn1|ff)\..*\.weight"
EXPONENTS = (getattr(torch, "float8_e8m0fnu", None),)  # which ComfyUI's reader of files takes as bytes
OPTIONS = {"int8_tensorwise": {"per_channel": True}}  # a scale a row, which costs nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER", help="in the published layout")
    parser.add_argument("format", help="as ComfyUI calls it: float8_e4m3fn, int8_tensorwise, nvfp4, …")
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        in_process.start(Path(base), "--cpu")
        try:
            folder = locate(arguments.model).transformer
            tensors = quantise(weights.read(folder), arguments.format)
            config = json.dumps(weights.read_config(folder))
            save_tensors({name: x.contiguous() for name, x in tensors.items()}, arguments.file, {"config": config})
        except FantasyIDError as error:
            raise SystemExit(str(error)) from error


def quantise(tensors: Mapping[str, Tensor], quant_format: str, device: str = "cpu") -> dict[str, Tensor]:
    """These tensors, the weights of the blocks' linear layers in one of ComfyUI's quantised formats.

    Args:
        device: where they are quantised, one after the other; the results are where the tensors are.

    Raises:
        SaveError: ComfyUI does not know the format.
    """
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    if quant_format not in QUANT_ALGOS:
        raise SaveError(f"This ComfyUI has no format '{quant_format}'; choose one of: {', '.join(QUANT_ALGOS)}.")
    layout, made = QUANT_ALGOS[quant_format]["comfy_tensor_layout"], {}
    note = torch.tensor(list(json.dumps({"format": quant_format}).encode()), dtype=torch.uint8)
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not re.fullmatch(LAYERS, name):
            made[name] = tensor
            continue
        options = {"scale": "recalculate"} | OPTIONS.get(quant_format, {})
        values = tensor.to(device, torch.float32 if device == "cpu" else torch.bfloat16)  # what kernels of cards take
        parts = QuantizedTensor.from_float(values, layout, **options).state_dict(name)
        parts = {part: x.to(tensor.device) for part, x in parts.items()}
        made |= {part: x.view(torch.uint8) if x.dtype in EXPONENTS else x for part, x in parts.items()}
        made[name.removesuffix("weight") + "comfy_quant"] = note.clone()
    return made


if __name__ == "__main__":
    main()
