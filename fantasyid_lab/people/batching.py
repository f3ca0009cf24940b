"""Many small descriptions → one of tensors with a batch dimension, so that nothing is done clip by clip."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def stack_fields(items: Sequence[Any], device: torch.device | str) -> SimpleNamespace:
    """The fields of alike dataclasses: numbers and arrays (…) become float32 tensors (B, …), dataclasses again such
    descriptions, texts are left out.
    """
    result = {}
    for field in fields(items[0]):
        values = [getattr(item, field.name) for item in items]
        if is_dataclass(values[0]):
            result[field.name] = stack_fields(values, device)
        elif not isinstance(values[0], str):
            result[field.name] = torch.from_numpy(np.asarray(values, np.float32)).to(device, non_blocking=True)
    return SimpleNamespace(**result)


@lru_cache(maxsize=256)
def constant(values: tuple, device: torch.device) -> torch.Tensor:
    """Numbers, nested in tuples, as a float32 tensor that is there already: copying them to a GPU anew waits until all
    that is queued there is done.
    """
    return torch.tensor(values, dtype=torch.float32, device=device)
