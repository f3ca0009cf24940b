"""What torch.compile leaves out of a graph."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable)


def uncompiled(function: Function) -> Function:
    """`torch.compiler.disable` with the type of what it decorates: neither this nor what it calls is compiled."""
    return cast(Function, torch.compiler.disable(function))


def uncompiled_itself(function: Function) -> Function:
    """As `uncompiled`, but what it calls is compiled."""
    return cast(Function, torch.compiler.disable(function, recursive=False))
