"""Skipped denoising steps in the real host, on stand-in weights: our cache, and the host's EasyCache and LazyCache."""

import sys
from collections.abc import Callable
from pathlib import Path

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]))

import comfy.model_base  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.acceleration import FantasyIDFaster  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection, transformer_of  # noqa: E402
from pack.nodes.host.sampler import ReleaseSampler  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
size = config["sample_height"], config["sample_width"]
seed = torch.Generator().manual_seed(0)
NOISE, OTHER_NOISE = torch.randn(2, 1, 16, 2, *size, generator=seed)
TEXT, NEGATIVE, OTHER_TEXT = torch.randn(3, 1, 226, 32, generator=seed)
TOKENS, OTHER_TOKENS = torch.randn(2, 20, 64, generator=seed)
STEPS = 8
found: dict = {"steps": STEPS}


def fresh():
    return load_model(config, split_published(read(folder / "transformer")))


def sample(model, noise: Tensor = NOISE, text: Tensor = TEXT, sampler: str = "ddim") -> Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, {}]], [[NEGATIVE, {}]])
    guider.set_cfg(6.0)
    own = {"release": lambda: ReleaseSampler("dpm", STEPS, torch.Generator().manual_seed(1))}
    chosen = own.get(sampler, lambda: comfy.samplers.sampler_object(sampler))()
    return guider.sample(noise, torch.zeros_like(noise), chosen, trailing_sigmas(model, STEPS), seed=0)


def faster(model, **settings):
    return FantasyIDFaster.run(model, False, step_cache="first block", **settings).args[0]


ALWAYS = {"cache_threshold": 1e9, "cache_start": 0.0, "cache_end": 1.0}


def counted(model, run: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """The latents, and how often the first and the last block ran."""
    counts, blocks = [0, 0], transformer_of(model).transformer_blocks

    def count(which: int) -> Callable:
        def hook(*_) -> None:
            counts[which] += 1

        return hook

    hooks = [block.register_forward_hook(count(i)) for i, block in enumerate((blocks[0], blocks[-1]))]
    latents = run()
    for hook in hooks:
        hook.remove()
    return latents, counts


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


plain = fresh()
model = add_injection(plain, Injection(TOKENS))
exact = sample(model)
cached = faster(model, **ALWAYS)
skipping, found["first and last block"] = counted(model, lambda: sample(cached))
found["differs"] = difference(skipping, exact)
found["threshold 0"] = torch.equal(sample(faster(model, **{**ALWAYS, "cache_threshold": 0.0})), exact)
found["off"] = torch.equal(sample(FantasyIDFaster.run(cached, False, step_cache="off").args[0]), exact)
found["plain untouched"] = torch.equal(sample(model), exact)
_, found["part of the run"] = counted(model, lambda: sample(faster(model, **{**ALWAYS, "cache_start": 0.5})))
late = faster(add_injection(plain, Injection(TOKENS, start=0.2)), **ALWAYS)
_, found["identity sets in"] = counted(model, lambda: sample(late))

# nothing is left for the next run: other noise, prompt or identity equals a model that never ran
found["repeats"] = torch.equal(sample(cached), skipping)
new = faster(add_injection(fresh(), Injection(TOKENS)), **ALWAYS)
found["other noise"] = torch.equal(sample(cached, OTHER_NOISE), sample(new, OTHER_NOISE))
found["other prompt"] = torch.equal(sample(cached, text=OTHER_TEXT), sample(new, text=OTHER_TEXT))
other, new = (faster(add_injection(x, Injection(OTHER_TOKENS)), **ALWAYS) for x in (plain, fresh()))
found["other identity"] = torch.equal(sample(other), sample(new))

found["before Apply"] = torch.equal(sample(add_injection(faster(plain, **ALWAYS), Injection(TOKENS))), skipping)
found["samplers"] = {
    name: counted(model, lambda name=name: sample(cached, sampler=name))[1] for name in ("release", "dpm_2", "heun")
}

# where memory is short, the host predicts the branches one after the other
memory = comfy.model_base.BaseModel.memory_required
comfy.model_base.BaseModel.memory_required = lambda *a, **k: 1e15
apart, found["branches apart"] = counted(model, lambda: sample(cached))
comfy.model_base.BaseModel.memory_required = memory
found["branches apart differ"] = difference(apart, skipping)

compiled = cached.clone()
set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model.transformer_blocks.1"])
found["compiled"] = difference(sample(compiled), skipping)

for name, node in (("EasyCache", EasyCacheNode), ("LazyCache", LazyCacheNode)):
    theirs = node.execute(model, 3.0, 0.0, 1.0, False).args[0]
    latents, counts = counted(model, lambda theirs=theirs: sample(theirs))
    far = difference(latents, exact)
    latents, both = counted(model, lambda theirs=theirs: sample(faster(theirs, **ALWAYS)))
    found[name] = {"blocks": counts, "differs": far, "with ours": [bool(latents.isfinite().all()), both]}
    found[f"after {name}"] = torch.equal(sample(model), exact)
host.report(**found)
