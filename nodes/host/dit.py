"""The video DiT in ComfyUI's calling convention: its wrappers, block patches and attention take part."""

import functools
from collections.abc import Mapping
from typing import Any

import comfy.patcher_extension
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ...fantasyid_core.dit.injection import InjectionRun
from ...fantasyid_core.dit.kernels import Rotary
from ...fantasyid_core.dit.step_cache import StepCaches
from ...fantasyid_core.dit.transformer import FantasyIDTransformer
from ...fantasyid_core.sampling.schedule import TRAIN_STEPS
from .compat import cast_weights

INJECTIONS, RUN, FP8 = "fantasyid_injections", "fantasyid_run", "fantasyid_fp8"
CACHE, CACHES = "fantasyid_step_cache", "fantasyid_step_caches"
UNCONDITIONAL = 1  # ComfyUI's number for that branch


def host_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, L, D) → (B, L, H · D) by the attention that the artist chose for the host (sage, flash, split, …)."""
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True)


class NativeTransformer(FantasyIDTransformer):
    """The DiT in the host's calling convention, (B, C, T, H, W), taking part in its wrappers and block patches."""

    _rotary: tuple[tuple, Rotary | None] = ((), None)
    _norms: dict[tuple, tuple[Tensor, Tensor]] | None = None

    @torch.compiler.disable(recursive=False)
    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control=None, transformer_options: Mapping = {}, **extra
    ) -> Tensor:
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **extra)

    @torch.compiler.disable(recursive=False)
    def _predict(self, x: Tensor, timesteps: Tensor, context: Tensor, control, options: Mapping, **extra) -> Tensor:
        run = options.get(RUN) or InjectionRun(options.get(INJECTIONS, ()))
        run.unconditional = tuple(branch == UNCONDITIONAL for branch in options.get("cond_or_uncond", ()))
        caches: StepCaches | None = options.get(CACHES)
        # reading a timestep back from the GPU waits for it, so only where something acts on a part of the run
        wanted = run.depends_on_progress or caches is not None
        progress = 1 - timesteps[0].item() / (TRAIN_STEPS - 1) if wanted else 0.0
        velocity = super().forward(
            x.transpose(1, 2),
            context,
            timesteps,
            rotary=self._rotary_for(x),
            run=run,
            progress=progress,
            run_block=_BlockPatches(options, x),
            cache=None if caches is None else caches.of(tuple(window_of(options) or ())),
            # where an identity sets in or ends, a step is not like the one before
            branch=(*options.get("uuids", ()), *(injection.acts(progress) for injection in run.injections)),
        )
        return velocity.transpose(1, 2)

    def start_run(self, keep: bool) -> None:
        """Forget the layer norms' weights; keep those of the run that starts now, if they are constant over it.

        Streaming such small tensors anew for every block would wait for the card each time.
        """
        self._norms = {} if keep else None

    def norm_weights(self, norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer norm as the host has them: from wherever it holds them, patched by it."""
        if self._norms is None or torch.compiler.is_compiling():
            return cast_weights(norm, like)
        key = (norm, like.device, like.dtype)
        if key not in self._norms:
            self._norms[key] = cast_weights(norm, like)
        return self._norms[key]

    @torch.compiler.disable
    def _rotary_for(self, x: Tensor) -> Rotary | None:
        key = (*x.shape[2:], x.device)
        if self._rotary[0] != key:
            self._rotary = (key, self.rotary_embedding(*x.shape[2:], x.device))
        return self._rotary[1]


def window_of(options: Mapping) -> list[int] | None:
    """The latent frames of the context window that is being predicted; None for the whole video."""
    return getattr(options.get("context_window"), "index_list", None)


class _BlockPatches:
    """Runs one block as the host's other models do: `patches_replace` around it, `double_block` patches after it."""

    def __init__(self, options: Mapping, x: Tensor):
        self.options, self.x, self.fp8 = options, x, options.get(FP8, False)
        self.replace = options.get("patches_replace", {}).get("dit", {})
        self.after = options.get("patches", {}).get("double_block", [])

    @torch.compiler.disable(recursive=False)
    def __call__(
        self, index: int, block: nn.Module, visual: Tensor, words: Tensor, time: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        args = {"img": visual, "txt": words, "vec": time, "pe": rotary, "transformer_options": self.options}
        replace = self.replace.get(("double_block", index))
        original = functools.partial(self._original, block)
        out = original(args) if replace is None else replace(args, {"original_block": original})
        for patch in self.after:
            out = patch({**out, "x": self.x, "vec": time, "block_index": index, "transformer_options": self.options})
        return out["img"], out["txt"]

    @torch.compiler.disable(recursive=False)
    def _original(self, block: nn.Module, args: Mapping) -> dict[str, Tensor]:
        run = functools.partial(_run_eagerly, block) if _is_streamed(block, args["img"].device) else block
        img, txt = run(args["img"], args["txt"], args["vec"], args["pe"], fp8=self.fp8)
        return {"img": img, "txt": txt}


@torch.compiler.disable
def _is_streamed(block: nn.Module, device: torch.device) -> bool:
    """Whether the host holds a part of a block's weights elsewhere than the block computes."""
    return any(parameter.device != device for parameter in block.parameters())


@torch.compiler.disable
def _run_eagerly(block: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A streamed block, which is not to be compiled: every set of layers that are elsewhere would make code of its own,
    until torch gives up (1.69 s a step compiled, 1.46 s not, where an H100 had 7 GiB free)."""
    return getattr(block, "_orig_mod", block)(*args, **options)  # beneath a wrapper that compiles this block
