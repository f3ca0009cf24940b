"""Our windows as the host's context windows: the host cuts, predicts and blends, the core says where and how much."""

import comfy.context_windows
import comfy.model_patcher
from torch import Tensor

from ...fantasyid_core.sampling.windows import Windows
from .compat import window_options

FRAMES = 2  # the dimension of latents (B, C, T, H, W) that is cut


class WindowHandler(comfy.context_windows.IndexListContextHandler):
    """The host's handler without its search for the present step.

    Our windows do not depend on the step; the search waits for the device and refuses samplers that evaluate the model
    between two steps.
    """

    def set_step(self, timestep: Tensor, model_options: dict) -> None:
        pass


def set_windows(model: comfy.model_patcher.ModelPatcher, windows: Windows) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model`, sharing its weights, that predicts longer videos in these windows."""
    model = model.clone()
    model.model_options["context_handler"] = WindowHandler(
        comfy.context_windows.ContextSchedule("fantasyid", lambda frames, *_: windows.over(frames)),
        comfy.context_windows.ContextFuseMethod("fantasyid", lambda *_, idxs, **__: windows.weights(idxs)),
        context_length=windows.length,
        context_overlap=windows.overlap,
        dim=FRAMES,
        **window_options(WindowHandler),
    )
    comfy.context_windows.create_prepare_sampling_wrapper(model)  # the host reckons with one window's memory
    return model
