"""Milliseconds of a block's parts on a CUDA card, fused and plain: `python -m benchmarks.kernels [REGEX]`."""

import re
import statistics
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fantasyid_core.dit import kernels
from fantasyid_core.dit.fp8 import fp8_matmul, quantise_weight
from fantasyid_core.dit.injection import LayerAttention
from fantasyid_core.dit.kernels import Modulation, Norm

BATCH, VISUAL, WORDS, HEADS, HEAD = 2, 17550, 226, 48, 64
DIM = HEADS * HEAD
BURST = 8  # calls between two events: one alone would show what Python takes to launch it
Part = tuple[str, Callable[[], object]]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median of a call."""
    run()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(BURST):
            run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / BURST)
    return statistics.median(found)


def small_operations() -> Iterator[Part]:
    hidden_states, encoder_hidden_states = draw(BATCH, VISUAL, DIM), draw(BATCH, WORDS, DIM)
    norm, head_norm = Norm(draw(DIM), draw(DIM), 1e-5), Norm(draw(HEAD), draw(HEAD), 1e-6)
    modulation = Modulation(*draw(BATCH, 4 * DIM).chunk(4, 1))
    joint, heads = draw(BATCH, WORDS + VISUAL, DIM), draw(BATCH, WORDS + VISUAL, HEADS, HEAD)
    angle = torch.rand(VISUAL, HEAD // 2, device="cuda").repeat_interleave(2, 1)
    rotary = angle.cos(), angle.sin()
    flat = (hidden_states, encoder_hidden_states, *norm, *modulation)
    yield "modulate", lambda: kernels.modulate(hidden_states, encoder_hidden_states, norm, modulation)
    yield "modulate, eager", lambda: kernels.modulate_eager(*flat)
    yield "modulate_fp8", lambda: kernels.modulate_fp8(hidden_states, encoder_hidden_states, norm, modulation)
    yield "gated_add", lambda: kernels.gated_add(hidden_states, joint[:, WORDS:], modulation.scale)
    yield "gated_add, eager", lambda: kernels.gated_add_eager(hidden_states, joint[:, WORDS:], modulation.scale)
    yield "qk_norm_rope", lambda: kernels.qk_norm_rope(heads, head_norm, rotary, WORDS)
    yield "qk_norm_rope, eager", lambda: kernels.qk_norm_rope_eager(heads, *head_norm, *rotary, WORDS)
    yield "layer_norm", lambda: kernels.layer_norm(hidden_states, norm)
    yield "layer_norm, eager", lambda: kernels.layer_norm_eager(hidden_states, *norm)
    yield "quantise_rows", lambda: kernels.quantise_rows(joint)
    wide = draw(BATCH, WORDS + VISUAL, 4 * DIM)
    yield "gelu_fp8", lambda: kernels.gelu_fp8(wide)


def products() -> Iterator[Part]:
    for inner, outer in ((DIM, DIM), (DIM, 4 * DIM), (4 * DIM, DIM)):
        x, weight, bias = draw(BATCH * (WORDS + VISUAL), inner), draw(outer, inner), draw(outer)
        x8, w8 = kernels.quantise_rows(x), quantise_weight(weight)
        size = f"{inner} → {outer}"
        yield f"product {size}", lambda x=x, w=weight, b=bias: F.linear(x, w, b)
        yield f"product {size}, fp8", lambda x=x8, w=w8, b=bias: fp8_matmul(x, w, b, torch.bfloat16)
        yield f"weight {size} to fp8", lambda w=weight: quantise_weight(w)
        if outer > inner:
            yield f"product {size}, GELU", lambda x=x, w=weight, b=bias: kernels.linear_gelu(x, w, b)
            yield f"product {size}, GELU, eager", lambda x=x, w=weight, b=bias: kernels.linear_gelu_eager(x, w, b)


def attention() -> Iterator[Part]:
    length = WORDS + VISUAL

    def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    for queries, keys in ((length, length), (17920, length), (length, 17920), (17920, 17920), (17792, 17792)):
        q, k, v = (draw(BATCH, n, HEADS, HEAD).transpose(1, 2) for n in (queries, keys, keys))
        yield f"attention, {queries} queries, {keys} keys", lambda q=q, k=k, v=v: cudnn(q, k, v)


def injection() -> Iterator[Part]:
    layer = LayerAttention(DIM, 2048, 2048).to("cuda", torch.bfloat16)
    hidden = draw(BATCH, VISUAL, DIM)
    keys_values = layer.keys_values(draw(1, 115, 2048))
    q = draw(BATCH, VISUAL, 16, 128).transpose(1, 2)
    k, v = (x.expand(BATCH, -1, -1, -1) for x in keys_values)
    yield "injection", lambda: layer(hidden, keys_values)
    yield "injection: attention", lambda: F.scaled_dot_product_attention(q, k, v)
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def one(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        yield f"injection: attention, {backend.name}", one


@torch.no_grad()
def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(torch.cuda.get_device_name(), torch.__version__)
    for parts in (small_operations, products, attention, injection):
        for name, run in parts():
            if re.search(wanted, name):
                try:
                    print(f"{name:42} {milliseconds(run):8.3f} ms", flush=True)
                except RuntimeError as error:
                    print(f"{name:42} failed: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
