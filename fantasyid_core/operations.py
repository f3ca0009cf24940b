"""The layers that networks are built from: PyTorch's, or those of a caller that streams, casts and patches weights.

A network takes them as `operations`, as ComfyUI's own models do. What they hold, and under which names, is the same.
"""

from typing import Protocol

from torch import nn


class Operations(Protocol):
    """A namespace of layer classes with the signatures of `torch.nn`, which is one."""

    @property
    def Linear(self) -> type[nn.Linear]: ...  # noqa: N802 (torch's names)
    @property
    def Conv1d(self) -> type[nn.Conv1d]: ...  # noqa: N802
    @property
    def Conv2d(self) -> type[nn.Conv2d]: ...  # noqa: N802
    @property
    def Conv3d(self) -> type[nn.Conv3d]: ...  # noqa: N802
    @property
    def GroupNorm(self) -> type[nn.GroupNorm]: ...  # noqa: N802
    @property
    def LayerNorm(self) -> type[nn.LayerNorm]: ...  # noqa: N802


TORCH: Operations = nn
