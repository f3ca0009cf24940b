"""Run ComfyUI's main.py as `python main.py ARGS` would: `python launch_comfy.py HOST_DIR ARGS…`.

Before that, two gaps of machines with a CPU build of torch are closed; where torchvision and torchaudio fit, nothing is
done.
"""

import importlib.machinery
import importlib.util
import runpy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

_OPERATORS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
_held = []  # torch forgets an operator as soon as the library object that defined it is collected


class _TorchvisionOperators(MetaPathFinder):
    """Defines the names of torchvision's operators, if torchvision could not load the binary that has them.

    Being a finder it waits until torchvision is imported: the host wants to set up CUDA before anyone imports torch.
    """

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name != "torchvision._meta_registrations":
            return
        sys.meta_path.remove(self)
        if not sys.modules["torchvision.extension"]._has_ops():
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in (name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)):
                library.define(f"{operator}(Tensor input) -> Tensor")
            _held.append(library)


def fit_imports() -> None:
    """Let torchvision be imported beside a torch that its binary does not fit, and the host without torchaudio."""
    if not any(isinstance(finder, _TorchvisionOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionOperators())
    if importlib.util.find_spec("torchaudio") is None:
        for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms"):
            _stand_in(name)


def _stand_in(name: str) -> None:
    """An empty module, so that the host's `import` succeeds; whoever uses it fails."""
    spec = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    module = ModuleType(name, "Empty stand-in: no audio in this environment.")
    module.__spec__, module.__path__ = spec, []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    host = Path(sys.argv[1]).resolve()
    fit_imports()
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    sys.path[0] = str(host)
    runpy.run_path(sys.argv[0], run_name="__main__")
