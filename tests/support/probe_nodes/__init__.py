"""A node pack for the tests only: bad input that no stock node makes, and a look into the server's memory."""

import ctypes
import gc
import sys
import time

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import torch
from aiohttp import web
from comfy.taesd.taesd import TAESD
from comfy.text_encoders import genmo
from server import PromptServer


@PromptServer.instance.routes.get("/probe")
async def probe(request: web.Request) -> web.Response:
    """How many models the host keeps loaded, and how many transformers of the pack are alive at all.

    Gives memory that is free inside the process back to the system first, so that its size says what is in use.
    """
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    kinds = [type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, torch.nn.Module)]
    loaded = len(comfy.model_management.current_loaded_models)
    return web.json_response({"loaded": loaded, "transformers": kinds.count("NativeTransformer")})


class Probe:
    """Base: a node without inputs that returns `make()`."""

    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def run(self) -> tuple:
        return (self.make(),)


class ProbeNaN(Probe):
    RETURN_TYPES = ("IMAGE",)

    def make(self) -> torch.Tensor:
        image = torch.rand(1, 256, 256, 3)
        image[0, 3, 4, 1] = float("nan")
        return image


class ProbeLandmarks(Probe):
    """Landmarks of four frames as ComfyUI's MediaPipe node gives them; the third shows no face."""

    RETURN_TYPES = ("FACE_LANDMARKS",)

    def make(self) -> dict:
        points = torch.rand(478, 3, generator=torch.Generator().manual_seed(0)).numpy()
        face = {"landmarks_xy": 100 + 80 * points[:, :2], "landmarks_3d": 192 * points}
        return {"frames": [[face], [face], [], [face]], "image_size": (512, 512), "connection_sets": {}}


class ProbeModel(Probe):
    """A small Stable Diffusion 1 UNet."""

    RETURN_TYPES = ("MODEL",)

    def make(self) -> comfy.model_patcher.ModelPatcher:
        unet = {
            **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1]},
            **{
                "channel_mult": (1, 2),
                "num_heads": 2,
                "transformer_depth": [1, 1],
                "transformer_depth_output": [1] * 4,
            },
            **{
                "transformer_depth_middle": 1,
                "context_dim": 32,
                "use_spatial_transformer": True,
                "use_linear_in_transformer": False,
            },
        }
        model = comfy.supported_models.SD15({**unet, "adm_in_channels": None, "use_temporal_attention": False})
        device = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model.get_model({}, ""), device, device)


class ProbeVae(Probe):
    """TAESD with random weights, a VAE for pictures."""

    RETURN_TYPES = ("VAE",)

    def make(self) -> comfy.sd.VAE:
        return comfy.sd.VAE(sd=TAESD().state_dict())


class ProbeClip(Probe):
    """Stable Diffusion 1's text encoder, without weights."""

    RETURN_TYPES = ("CLIP",)

    def make(self) -> comfy.sd.CLIP:
        target = comfy.supported_models.SD15({}).clip_target()
        target.params = {}
        return comfy.sd.CLIP(target, model_options={"initial_device": "meta"})


class ProbeMaskedT5(Probe):
    """T5 as CLIPLoader's type 'mochi' gives it, with an attention mask."""

    RETURN_TYPES = ("CLIP",)

    def make(self) -> comfy.sd.CLIP:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1}

        class target:
            params, clip, tokenizer = {}, genmo.mochi_te(), genmo.MochiT5Tokenizer

        return comfy.sd.CLIP(target, model_options={"t5xxl_model_config": sizes})


class ProbeName(Probe):
    """A model's name through a link instead of a widget."""

    RETURN_TYPES = ("COMBO",)

    def make(self) -> str:
        return "FantasyID"


class ProbeSlow:
    """A MODEL whose every prediction takes 0.3 s longer."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: comfy.model_patcher.ModelPatcher) -> tuple:
        def wait(predict, *args, **options):
            time.sleep(0.3)
            return predict(*args, **options)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wait)
        return (model,)


NODES = (ProbeNaN, ProbeLandmarks, ProbeModel, ProbeVae, ProbeClip, ProbeMaskedT5, ProbeName, ProbeSlow)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
