"""Videos longer than the model knows, through the host's context windows, on stand-in weights."""

import sys
from collections import Counter
from pathlib import Path

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]))

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_context_windows import ContextWindowsManualNode  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection, LayerAttention  # noqa: E402
from pack.fantasyid_core.dit.step_cache import CacheSettings  # noqa: E402
from pack.fantasyid_core.errors import SamplingError  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.fantasyid_core.sampling.windows import Windows  # noqa: E402
from pack.nodes.host.dit import NativeTransformer  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection, set_step_cache  # noqa: E402
from pack.nodes.host.sampler import ReleaseSampler  # noqa: E402
from pack.nodes.host.windows import set_windows  # noqa: E402
from pack.nodes.long_video import FantasyIDLongVideo  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
size = config["sample_height"], config["sample_width"]
KNOWN = (config["sample_frames"] - 1) // 4 + 1
LONG = 3 * KNOWN
seed = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, LONG, *size, generator=seed)
FIRST, OTHER = torch.randn(2, 1, 16, 1, *size, generator=seed)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=seed)
found: dict = {"known": KNOWN}

seen: list[Tensor] = []  # what the transformer was given, call by call
predict = NativeTransformer.forward
NativeTransformer.forward = lambda self, x, *args, **kwargs: seen.append(x) or predict(self, x, *args, **kwargs)


def sample(model, frames: int = LONG, first: Tensor = FIRST, steps: int = 2, sampler: str = "ddim") -> Tensor:
    seen.clear()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[TEXT, {"concat_latent_image": first}]], [[NEGATIVE, {"concat_latent_image": first}]])
    guider.set_cfg(6.0)
    own = {"release": lambda: ReleaseSampler("dpm", steps, torch.Generator().manual_seed(1))}
    chosen = own.get(sampler, lambda: comfy.samplers.sampler_object(sampler))()
    noise = NOISE[:, :, :frames]
    return guider.sample(noise, torch.zeros_like(noise), chosen, trailing_sigmas(model, steps), seed=0)


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


plain = add_injection(
    load_model(config, split_published(read(folder / "transformer"))), Injection(torch.randn(20, 64, generator=seed))
)
cut = set_windows(plain, Windows(KNOWN, 1))
anchored = set_windows(plain, Windows(KNOWN, 1, anchored=True))

try:
    sample(plain)
    found["without windows"] = "accepted"
except SamplingError as error:
    found["without windows"] = str(error)
found["one window"] = [torch.equal(sample(plain, KNOWN), sample(x, KNOWN)) for x in (cut, anchored)]

# how much work, and of what size
found["shape"] = list(sample(cut).shape)
found["some latents"] = sample(cut)[0, 0, ::4, 3, 5].tolist()
found["frames at once"] = sorted(Counter(x.shape[2] for x in seen))
found["calls a step"] = {}
for frames in (KNOWN, LONG // 3 * 2, LONG):
    sample(cut, frames)
    found["calls a step"][frames] = len(seen) / 2
reckoned = []
memory = comfy.model_base.BaseModel.memory_required
comfy.model_base.BaseModel.memory_required = lambda self, shape, *a, **k: (
    reckoned.append(shape[2]) or memory(self, shape, *a, **k)
)
sample(cut)
comfy.model_base.BaseModel.memory_required = memory
found["frames that the host reckons with"] = max(reckoned)

# where the reference image is shown, and what it reaches
image = [[bool(frame.any()) for frame in x[0, 16:].unbind(1)] for x in seen]
found["image in the first window"] = image[0]
found["image in later windows"] = any(map(any, image[1 : len(image) // 2]))
a, b = sample(cut, steps=1), sample(cut, first=OTHER, steps=1)
found["frames that the image reaches"] = [not torch.equal(x, y) for x, y in zip(a.unbind(2), b.unbind(2), strict=True)]
sample(anchored, steps=1)
found["anchored image"] = [[bool(frame.any()) for frame in x[0, 16:].unbind(1)] for x in seen]
found["anchored noise"] = all(torch.equal(x[:, :16, 0], seen[0][:, :16, 0]) for x in seen)
alone, whole = sample(plain, KNOWN, steps=1), sample(anchored, steps=1)
found["first frame of the first window alone"] = difference(whole[:, :, 0], alone[:, :, 0])

calls = []
original = LayerAttention.keys_values
LayerAttention.keys_values = lambda self, tokens: calls.append(1) or original(self, tokens)
sample(cut)
LayerAttention.keys_values = original
found["keys and values computed"] = len(calls)

found["samplers"] = {name: bool(sample(cut, sampler=name).isfinite().all()) for name in ("release", "dpm_2", "euler")}
cached = set_step_cache(cut, CacheSettings(1e9, start=0.0, most=1))
windows_alone = [sample(x, steps=3) for x in (cut, cached)]
found["step cache"] = [difference(*windows_alone), bool(windows_alone[1].isfinite().all())]


def stock(length: int, **more) -> Tensor:
    """Latents in the windows of ComfyUI's own node; its other widgets at their defaults."""
    widgets = ContextWindowsManualNode.define_schema().inputs
    inputs = {widget.id: widget.default for widget in widgets if getattr(widget, "default", None) is not None}
    inputs |= {"context_length": length, "context_overlap": 1, "context_schedule": "standard_static", "dim": 2, **more}
    return sample(ContextWindowsManualNode.execute(**inputs | {"model": plain, "fuse_method": "pyramid"}).args[0])


fix = "causal_window_fix"  # of ComfyUI since 0.21: the frame before it in front of each later window
has_fix = any(widget.id == fix for widget in ContextWindowsManualNode.define_schema().inputs)
found["stock node"] = bool(stock(KNOWN, **{fix: False} if has_fix else {}).isfinite().all())
found["stock node's frames"] = sorted({x.shape[2] for x in seen})
if has_fix:
    found["stock node, fixed"] = bool(stock(KNOWN - 1).isfinite().all()), sorted({x.shape[2] for x in seen})
    try:
        stock(KNOWN)
    except SamplingError as error:
        found["stock node, too long"] = str(error)

(model,) = FantasyIDLongVideo.run(plain, 0, 4, "as trained").args
handler = model.model_options["context_handler"]
found["node"] = [handler.context_length, handler.context_overlap, handler.context_schedule.func(LONG, handler, {})]
found["plain untouched"] = "context_handler" not in plain.model_options and model.model is plain.model
host.report(**found)
