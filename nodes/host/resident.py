"""Networks of which nodes need no output but their work: read once, and held by ComfyUI as it holds models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
from torch import Tensor, nn

from ...fantasyid_core.meters import attribute_regressor
from ...fantasyid_core.reconstruction import deca, flame
from .compat import make_patcher

Build = Callable[[Path], nn.Module]

_held: dict[Build, tuple[tuple, comfy.model_patcher.ModelPatcher]] = {}
"""The last of each kind, with what its files were like."""


def on_device(wanted: Sequence[tuple[Build, Path]], memory: int = 0) -> list[Any]:
    """Networks, each by how it is read from which file or folder, whole on ComfyUI's device, all at once.

    memory: bytes that their work takes besides.
    """
    patchers = [_patcher(build, path) for build, path in wanted]
    comfy.model_management.load_models_gpu(patchers, memory_required=memory, force_full_load=True)
    return [patcher.model for patcher in patchers]


def deca_regressor(path: Path) -> nn.Module:
    """DECA's regressor, in float32."""
    return deca.load_regressor(path).float()


def face_model(path: Path) -> "FaceModel":
    """FLAME, or the face model of another file."""
    return FaceModel(flame.load(path))


def attribute_network(folder: Path) -> nn.Module:
    """The network that reads expression and pose."""
    return attribute_regressor.load(folder, "cpu")


class FaceModel(nn.Module):
    """A face model's arrays as buffers, which ComfyUI moves; `flame` has them where they are at the time."""

    def __init__(self, arrays: flame.Flame):
        super().__init__()
        self._plain: dict[str, Any] = {
            name: value for name, value in vars(arrays).items() if not isinstance(value, Tensor)
        }
        for name, value in vars(arrays).items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)

    @property
    def flame(self) -> flame.Flame:
        arrays: dict[str, Any] = {**self._plain, **dict(self.named_buffers())}
        return flame.Flame(**arrays)


def _patcher(build: Build, path: Path) -> comfy.model_patcher.ModelPatcher:
    files = [path] if path.is_file() else sorted(path.iterdir())
    state = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    if build not in _held or _held[build][0] != state:
        _held.pop(build, None)  # the old one goes before the new one comes
        patcher = make_patcher(
            build(path),
            comfy.model_management.get_torch_device(),
            comfy.model_management.unet_offload_device(),
        )
        _held[build] = (state, patcher)
    return _held[build][1]
