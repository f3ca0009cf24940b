"""An embedding that works on one core at a time, on several: dlib lets no second thread of a process run."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.meters import embedding
from fantasyid_core.meters.embedding import Embedding

_CHIPS = 16  # per errand
_loaded: list[Embedding] = []


@contextmanager
def shared_out(name: str, folders: Sequence[Path], processes: int) -> Iterator[Embedding]:
    """`embedding.load`, its chips shared out among processes while the context lasts; alone in this one for 1.

    Raises:
        WeightsMissingError, PackageMissingError: as `embedding.load`, before any process is started.
    """
    own = embedding.load(name, folders)
    if processes < 2:
        yield own
        return
    # Spawned: a fork of a process whose libraries run threads may hang.
    with ProcessPoolExecutor(processes, get_context("spawn"), _load, (name, list(folders))) as pool:

        def vectors(chips: Tensor) -> Tensor:
            found = pool.map(_vectors, (part.float().cpu().numpy() for part in chips.split(_CHIPS)))
            return torch.from_numpy(np.concatenate(list(found)))

        yield replace(own, vectors=vectors)


def _load(name: str, folders: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    _loaded.append(embedding.load(name, folders))


def _vectors(chips: np.ndarray) -> np.ndarray:
    return _loaded[0].vectors(torch.from_numpy(chips)).numpy()
