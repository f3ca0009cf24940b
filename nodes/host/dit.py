"""The video DiT in ComfyUI's calling convention: its wrappers, block patches and attention take part.

docs/comfyui_options.md lists what arrives in `transformer_options` and what becomes of it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.attention import asking_for
from ...fantasyid_core.dit.compiling import uncompiled, uncompiled_itself
from ...fantasyid_core.dit.injection import BatchInjector
from ...fantasyid_core.dit.kernels import Rotary
from ...fantasyid_core.dit.region import TokenGrid
from ...fantasyid_core.dit.transformer import FantasyIDTransformer
from ...fantasyid_core.errors import SamplingError
from ...fantasyid_core.sampling.defaults import AS_RELEASED, SamplingDefaults
from ...fantasyid_core.sampling.schedule import TRAIN_STEPS
from .attention import Attention, PatchedAttention, attention_for
from .guidance import MARK
from .operators import with_weights
from .run import Options, Run


class NativeTransformer(FantasyIDTransformer):
    """The DiT in the host's calling convention, (B, C, T, H, W), taking part in its wrappers and block patches."""

    defaults: SamplingDefaults = AS_RELEASED

    @uncompiled_itself
    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control=None, transformer_options: Mapping = {}, **extra
    ) -> Tensor:
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timesteps, context, control, transformer_options, **extra)

    @uncompiled_itself
    def _predict(
        self, x: Tensor, timesteps: Tensor, context: Tensor, control, transformer_options: Mapping, **extra
    ) -> Tensor:
        if control is not None:
            raise SamplingError(
                "A ControlNet is on the prompts. ComfyUI has none for CogVideoX, and one of another model cannot steer "
                "this one. Take Apply ControlNet out of the way of the prompts."
            )
        ours = Options.of(transformer_options)
        run = ours.run or Run(ours.injections, keep=False)
        unconditional = tuple(extra.get(MARK, ()))
        injections = run.injections(unconditional)
        # reading a timestep back from the GPU waits for it, so only where something acts on a part of the run
        wanted = injections.depends_on_progress or run.skips_steps
        progress = 1 - timesteps[0].item() / (TRAIN_STEPS - 1) if wanted else 0.0
        attention = attention_for(transformer_options, self._queries(x, context), x.dtype, x.device)
        window = tuple(window_of(transformer_options) or ())
        injector = BatchInjector(
            injections, self._grid(x, run, window), unconditional, attention.injections, run.norm_weights
        )
        velocity = super().forward(
            x.transpose(1, 2),
            context,
            timesteps,
            image_rotary_emb=run.rotary(self, x, transformer_options.get("rope_options") or {}),
            injector=injector,
            progress=progress,
            run_block=_BlockPatches(self, transformer_options, x, attention, run),
            cache=run.step_cache(window, card_of(transformer_options)),
            # where an identity sets in or ends, a step is not like the one before
            branch=(*transformer_options.get("uuids", ()), *(i.is_active(progress) for i in injections.injections)),
        )
        return velocity.transpose(1, 2)

    def _grid(self, x: Tensor, run: Run, window: tuple[int, ...]) -> TokenGrid:
        frames, height, width = x.shape[2:]
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        return TokenGrid(run.frames or frames, rows, columns, window)

    def _queries(self, x: Tensor, context: Tensor) -> tuple[int, int, int, int]:
        """Samples, heads, tokens of text and video, and width of a head."""
        c = self.config
        tokens = context.shape[1] + x.shape[2] * (x.shape[3] // c.patch_size) * (x.shape[4] // c.patch_size)
        return len(x), c.num_attention_heads, tokens, c.attention_head_dim


def window_of(transformer_options: Mapping) -> list[int] | None:
    """The latent frames of the context window that is being predicted; None for the whole video."""
    return getattr(transformer_options.get("context_window"), "index_list", None)


def card_of(transformer_options: Mapping) -> torch.device | None:
    """The card of this thread, where ComfyUI shares the guidance branches out over several; None on a single one."""
    return transformer_options.get("multigpu_thread_device")


class _BlockPatches:
    """Runs one block as ComfyUI's other models do, with the patches of nodes around the blocks and inside them."""

    def __init__(
        self, transformer: NativeTransformer, transformer_options: Mapping, x: Tensor, attention: Attention, run: Run
    ):
        self.transformer_options = {
            **transformer_options,
            "total_blocks": len(transformer.transformer_blocks),
            "block_type": "double",
        }
        self.x, self.attention, self.run, self.fp8 = x, attention, run, Options.of(transformer_options).fp8
        self.replace = transformer_options.get("patches_replace", {}).get("dit", {})
        patches = transformer_options.get("patches", {})
        self.before, self.after = patches.get("post_input", []), patches.get("double_block", [])

    @uncompiled_itself
    def __call__(
        self,
        index: int,
        block: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rotary | None,
    ) -> tuple[Tensor, Tensor]:
        self.transformer_options["block_index"] = index
        if index == 0:
            for patch in self.before:
                given = {
                    "img": hidden_states,
                    "txt": encoder_hidden_states,
                    "transformer_options": self.transformer_options,
                }
                out = patch(given)
                hidden_states, encoder_hidden_states = out["img"], out["txt"]
        args = {
            "img": hidden_states,
            "txt": encoder_hidden_states,
            "vec": temb,
            "pe": image_rotary_emb,
            "transformer_options": self.transformer_options,
        }
        replace = self.replace.get(("double_block", index))
        original = functools.partial(self._original, block)
        out = original(args) if replace is None else replace(args, {"original_block": original})
        for patch in self.after:
            out = patch(
                {**out, "x": self.x, "vec": temb, "block_index": index, "transformer_options": self.transformer_options}
            )
        return out["img"], out["txt"]

    @uncompiled_itself
    def _original(self, block: nn.Module, args: Mapping) -> dict[str, Tensor]:
        compute = functools.partial(_run_eagerly, block) if _is_streamed(block, args["img"].device) else block
        text_tokens = args["txt"].shape[1]
        transformer_options = {
            **args["transformer_options"],
            "img_slice": [text_tokens, text_tokens + args["img"].shape[1]],
        }
        patched = PatchedAttention(self.attention.blocks, transformer_options)
        attend = patched if patched.has_patches else self.attention.blocks
        with asking_for(self.attention.backend):
            img, txt = compute(
                args["img"],
                args["txt"],
                args["vec"],
                args["pe"],
                fp8=self.fp8,
                attend=attend,
                weights_of=self.run.norm_weights,
                with_weights=with_weights,
            )
        return {"img": img, "txt": txt}


@uncompiled
def _is_streamed(block: nn.Module, device: torch.device) -> bool:
    """Whether the host holds a part of a block's weights elsewhere than the block computes."""
    return any(parameter.device != device for parameter in block.parameters())


@uncompiled
def _run_eagerly(block: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A streamed block, which is not to be compiled: every set of layers that are elsewhere would make code of its own,
    until torch gives up (1.69 s a step compiled, 1.46 s not, where an H100 had 7 GiB free).
    """
    return getattr(block, "_orig_mod", block)(*args, **options)  # beneath a wrapper that compiles this block
