"""A ComfyUI node for the soak: a MODEL that runs out of memory at its n-th operation. Copied into a server's packs."""

import comfy.patcher_extension
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Cap(TorchDispatchMode):
    def __init__(self, operations: int):
        super().__init__()
        self.left = operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError(f"CUDA out of memory (simulated at {func}).")
        return func(*args, **(kwargs or {}))


class OutOfMemory:
    """Counts operations over all predictions of a run."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:  # noqa: N802, ComfyUI's name
        return {"required": {"model": ("MODEL",), "operations": ("INT", {"default": 100, "max": 1 << 30})}}

    def run(self, model, operations: int) -> tuple:
        cap = _Cap(operations)

        def predict_capped(predict, *args, **options):
            with cap:
                return predict(*args, **options)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, predict_capped)
        return (model,)


NODE_CLASS_MAPPINGS = {"SoakOutOfMemory": OutOfMemory}
