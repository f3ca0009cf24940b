"""The host's own compile wrappers around the stand-in: how many graphs are made, and by what."""

import sys
from pathlib import Path

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]), "--cpu", "--use-pytorch-cross-attention")  # as on a GPU; the CPU's own breaks graphs

import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy_api.torch_helpers import set_torch_compile_wrapper  # noqa: E402
from pack.fantasyid_core.dit import fp8  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection  # noqa: E402
from pack.fantasyid_core.dit.step_cache import CacheSettings  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.host import attention, dit  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection, set_fp8_products, set_step_cache  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.attention import SDPBackend  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
size = config["sample_height"], config["sample_width"]
graphs = []
KEYS = {
    "blocks": [f"diffusion_model.transformer_blocks.{i}" for i in range(config["num_layers"])],
    "whole": None,  # what TorchCompileModel, the host's node, asks for
}


def backend(graph: torch.fx.GraphModule, inputs: list):
    graphs.append(graph)
    return graph.forward


def sample(model, seed: int = 0, frames: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 16, frames, *size, generator=generator)
    text, image = torch.randn(1, 226, 32, generator=generator), torch.randn(1, 16, 1, *size, generator=generator)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, {"concat_latent_image": image}]], [[-text, {"concat_latent_image": image}]])
    guider.set_cfg(6.0)
    sampler = comfy.samplers.sampler_object("ddim")
    return guider.sample(noise, torch.zeros_like(noise), sampler, trailing_sigmas(model, 4), seed=0, disable_pbar=True)


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def identity(count: int, seed: int, *settings: float) -> Injection:
    return Injection(torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)), *settings)


def graphs_of(model, keys: list[str] | None, seed: int = 0) -> tuple[int, float]:
    """How many graphs sampling a freshly compiled clone makes, and how far it is from the eager one."""
    exact, before = sample(model, seed), len(graphs)
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend=backend, keys=keys)
    return difference(sample(model, seed), exact), len(graphs) - before


plain = load_model(config, split_published(read(folder / "transformer")))
first = add_injection(plain, identity(20, 0))
found: dict = {}
for name, keys in KEYS.items():
    torch.compiler.reset()
    found[name] = {
        "first": graphs_of(first, keys),
        "new seed and prompt": graphs_of(first, keys, seed=1),
        "new strength": graphs_of(add_injection(plain, identity(20, 0, 0.7)), keys),
        "another identity": graphs_of(add_injection(plain, identity(20, 1)), keys),
        "another number of tokens": graphs_of(add_injection(plain, identity(33, 1)), keys),
        "a part of the run": graphs_of(add_injection(plain, identity(33, 1, 0.5, 0.3, 0.8)), keys),
        "two identities": graphs_of(add_injection(first, identity(33, 1)), keys),
        "no identity": graphs_of(plain, keys),
        "steps skipped": graphs_of(set_step_cache(first, CacheSettings(1e9, start=0.0)), keys),
    }

# attention: PyTorch's fastest kernel, asked for around the blocks, and a node's own, which no compiler looks into
has_kernels, fastest_backend = attention._has_kernels, attention.fastest_backend
overridden = first.clone()
overridden.model_options["transformer_options"]["optimized_attention_override"] = lambda attend, *a, **b: attend(
    *a, **b
)
for name, keys in KEYS.items():
    torch.compiler.reset()
    attention._has_kernels, attention.fastest_backend = lambda _: True, lambda *_: SDPBackend.EFFICIENT_ATTENTION
    found[name]["fastest kernel"] = graphs_of(first, keys)
    found[name]["fastest kernel again"] = graphs_of(first, keys, seed=1)
    attention._has_kernels, attention.fastest_backend = has_kernels, fastest_backend
    torch.compiler.reset()
    found[name]["a node's attention"] = graphs_of(overridden, keys)
    found[name]["a node's attention again"] = graphs_of(overridden, keys, seed=1)

# on a CPU nothing is ever elsewhere: some blocks, then all, are said to be
is_streamed = dit._is_streamed
block = plain.model.diffusion_model.transformer_blocks[0]
weight = next(block.parameters())
found["on the device"] = is_streamed(block, torch.device("cpu"))
found["elsewhere"] = is_streamed(block, torch.device("meta"))
for name, keys in KEYS.items():
    for what, said in (
        ("some streamed", lambda block, _: next(block.parameters()) is not weight),
        ("all streamed", lambda *_: True),
    ):
        torch.compiler.reset()
        dit._is_streamed = said
        found[name][what] = graphs_of(first, keys)
dit._is_streamed = is_streamed

# 8-bit products, by their plain twin here
found["refused"] = ""
try:
    set_fp8_products(first, True)
except Exception as error:
    found["refused"] = f"{type(error).__name__}: {error}"
fp8.missing = lambda device: None
faster = set_fp8_products(first, True)
found["fp8 compiled"] = graphs_of(faster, None)
found["fp8 difference"] = difference(sample(faster), sample(first))
found["before or after"] = torch.equal(
    sample(add_injection(set_fp8_products(plain, True), identity(20, 0))), sample(faster)
)
found["switched off again"] = torch.equal(sample(set_fp8_products(faster, False)), sample(first))
partial = set_fp8_products(
    add_injection(load_model(config, split_published(read(folder / "transformer"))), identity(20, 0)), True
)
partial.load(torch.device("cpu"), lowvram_model_memory=200_000)
found["partially loaded"] = [partial.model.model_lowvram, difference(sample(partial), sample(faster))]
stored = add_injection(load_model(config, split_published(read(folder / "transformer")), "fp8_e4m3fn"), identity(20, 0))
found["stored in fp8"] = difference(sample(set_fp8_products(stored, True)), sample(stored))
host.report(**found)
