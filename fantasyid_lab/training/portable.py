"""A checkpoint that travels: the averaged weights in fp16, in files below 15 MiB, without the optimisers' state.

    python -m fantasyid_lab.training.portable OUT STAGE TO

writes `STAGE.json` and `STAGE-N.safetensors` into the folder TO; from `OUT/portable/` elsewhere `--resume` goes
on. Such a run begins its optimisers anew from the averaged weights, warms the learning rate up again and draws people
who were not drawn before; its place on the learning rate's curve stays. Where there is a whole checkpoint, it wins.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fantasyid_core.errors import FantasyIDError, TrainingError
from fantasyid_core.io.layout import save_tensors, write_json
from fantasyid_core.io.text_files import read_text

from .options import OPTIONS

log = logging.getLogger(__name__)
FILE_BYTES = 15 << 20  # of tensors a file
PROGRESS, EMA = "progress.json", "ema.safetensors"  # of a whole checkpoint


def pack(checkpoint: Path, folder: Path) -> list[Path]:
    """Write the portable form of a whole checkpoint into `folder`; returns the files.

    Raises:
        TrainingError: there is no checkpoint. SaveError: the disk refuses a file.
    """
    if not (checkpoint / PROGRESS).is_file():
        raise TrainingError(f"{checkpoint} holds no checkpoint: expected {PROGRESS} there. Train the stage first.")
    progress = json.loads(read_text(checkpoint / PROGRESS))
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, x in sorted(load_file(checkpoint / EMA).items()):
        x = x.half() if x.ndim > 1 else x  # vectors and running means are few
        if size + x.nbytes > FILE_BYTES and files[-1]:
            files.append({})
            size = 0
        files[-1][name] = x
        size += x.nbytes
    stage = checkpoint.name
    paths = [folder / f"{stage}-{i}.safetensors" for i in range(len(files))]
    for tensors, path in zip(files, paths, strict=True):
        save_tensors(tensors, path)
    drawn = progress.get("skipped", 0) + progress["chunks"]
    state = {name: progress[name] for name in ("step", "elapsed", "ema_updates")} | {"chunks": 0, "skipped": drawn}
    write_json(folder / f"{stage}.json", state | {"optimizer_since": progress["step"], "files": len(files)})
    return [folder / f"{stage}.json", *paths]


def unpack(folder: Path, stage: str) -> tuple[dict, dict[str, Tensor]] | None:
    """Progress and averaged weights (float32) of a stage's portable checkpoint; `None` where there is none.

    Raises:
        TrainingError: a file is missing.
    """
    file = folder / f"{stage}.json"
    if not file.is_file():
        return None
    progress = json.loads(read_text(file))
    paths = [folder / f"{stage}-{i}.safetensors" for i in range(progress.pop("files"))]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise TrainingError(
            f"{file} goes with {', '.join(missing)}, which {folder} does not hold: copy them there too."
        )
    tensors = {name: x.to(torch.float32) for path in paths for name, x in load_file(path).items()}
    return progress, tensors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m fantasyid_lab.training.portable", description=__doc__)
    parser.add_argument("out", type=Path, help="the run's folder")
    parser.add_argument("stage", choices=list(OPTIONS))
    parser.add_argument("to", type=Path, help="folder for the files")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for path in pack(options.out / "checkpoints" / options.stage, options.to):
            log.info("%s: %.1f MiB", path, path.stat().st_size / 2**20)
    except FantasyIDError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
