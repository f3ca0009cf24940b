"""The video DiT with identity injection: CogVideoX's transformer plus one `LayerAttention` per injected block.

State-dict names are those of the published checkpoint without its identity encoder (which `fusion` holds).
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SamplingError, WeightsError
from ..fusion.checkpoint import Published
from ..io.weights import configured, load_into
from ..operations import TORCH, Operations
from .block import Block
from .compiling import uncompiled, uncompiled_itself
from .config import NO_INJECTION, InjectionSizes, TransformerConfig
from .injection import Injector, LayerAttention
from .kernels import Rotary
from .rotary import Axes, rotary_embedding
from .step_cache import Cached

Model = TypeVar("Model", bound="FantasyIDTransformer")
RunBlock = Callable[[int, nn.Module, Tensor, Tensor, Tensor, Rotary | None], tuple[Tensor, Tensor]]


class PatchEmbed(nn.Module):
    """The layers that make tokens of latents and of text."""

    pos_embedding: Tensor

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.proj = operations.Conv2d(config.in_channels, config.dim, config.patch_size, config.patch_size)
        self.text_proj = operations.Linear(config.text_embed_dim, config.dim)
        if config.use_learned_positional_embeddings:
            self.register_buffer("pos_embedding", torch.zeros(1, config.positions, config.dim))


class TimestepEmbedding(nn.Module):
    """Sinusoids of a timestep (B, dim) → time embedding (B, T)."""

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.linear_1 = operations.Linear(config.dim, config.time_embed_dim)
        self.linear_2 = operations.Linear(config.time_embed_dim, config.time_embed_dim)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class AdaLayerNorm(nn.Module):
    """A layer norm of tokens (B, L, dim) that a time embedding (B, T) modulates."""

    def __init__(self, config: TransformerConfig, operations: Operations = TORCH):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 2 * config.dim)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(temb)).chunk(2, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None]


class FantasyIDTransformer(nn.Module):
    """CogVideoX DiT whose blocks can take an identity.

    Args:
        config: sizes of the DiT.
        injection: sizes of the injection layers.
        operations: the layers that it is built from.
    """

    def __init__(
        self,
        config: TransformerConfig,
        injection: InjectionSizes = NO_INJECTION,
        operations: Operations = TORCH,
    ):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config, operations)
        self.time_embedding = TimestepEmbedding(config, operations)
        self.transformer_blocks = nn.ModuleList(Block(config, operations) for _ in range(config.num_layers))
        self.norm_final = operations.LayerNorm(config.dim, eps=config.norm_eps)
        self.norm_out = AdaLayerNorm(config, operations)
        self.proj_out = operations.Linear(config.dim, config.patch_size**2 * config.out_channels)
        self.layer_attention = nn.ModuleList(
            LayerAttention(
                config.dim, injection.token_dim, injection.inner_dim, config.layer_attention_head_dim, operations
            )
            for _ in range(injection.layers)
        )

    @uncompiled_itself  # block by block: all share one compiled code
    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        timestep: Tensor,
        *,
        image_rotary_emb: Rotary | None = None,
        injector: Injector | None = None,
        progress: float = 0.0,
        run_block: RunBlock | None = None,
        cache: Cached | None = None,
        branch: Hashable = (),
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latents: (B, T, C, H, W) noisy latents, then image latents, along C.
            text: (B, L, D) text embeddings, L ≤ 226.
            timestep: (B,) in 0…999.
            image_rotary_emb: cosines and sines from `rotary_embedding`; None for a model without rotary positions.
            injector: of the identities; None injects nothing.
            progress: 0 first step … 1 last; decides which identities act.
            run_block: how to run one block, where a caller takes part; called with
                (index, block, hidden states, text, time embedding, rotary positions).
            cache: may skip the blocks after the first, with their injections; None computes all.
            branch: for the cache, which guidance branches are in the batch.

        Returns:
            (B, T, out_channels, H, W), the dtype of `latents`.

        Raises:
            SamplingError: more text than the model has positions for.
        """
        temb, encoder_hidden_states, hidden_states = self._tokens(latents, text, timestep)
        run_blocks = functools.partial(
            self._run_blocks, run_block or run_as_is, temb, image_rotary_emb, injector, progress
        )
        if cache is None:
            hidden_states, _ = run_blocks(hidden_states, encoder_hidden_states, slice(None))
        else:
            hidden_states = cache(run_blocks, hidden_states, encoder_hidden_states, branch, progress)
        return self._velocity(hidden_states, temb, latents.shape)

    @uncompiled_itself
    def _run_blocks(
        self,
        run_block: RunBlock,
        temb: Tensor,
        image_rotary_emb: Rotary | None,
        injector: Injector | None,
        progress: float,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        blocks: slice,
    ) -> tuple[Tensor, Tensor]:
        interval = self.config.cross_attn_interval
        for i in range(*blocks.indices(len(self.transformer_blocks))):
            block = self.transformer_blocks[i]
            hidden_states, encoder_hidden_states = run_block(
                i, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb
            )
            if injector is not None and i % interval == 0:
                layer = i // interval
                attention = cast(LayerAttention, self.layer_attention[layer])
                hidden_states = _inject(injector, hidden_states, layer, attention, progress)
        return hidden_states, encoder_hidden_states

    @uncompiled
    def _tokens(self, latents: Tensor, text: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time embedding (B, T), text tokens, video tokens."""
        sinusoids = timestep_sinusoids(timestep, self.config.dim)
        return self.time_embedding(sinusoids.to(latents.dtype)), *self.embed(latents, text)

    @uncompiled
    def _velocity(self, hidden_states: Tensor, temb: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, _, height, width = shape
        hidden_states = self.proj_out(self.norm_out(self.norm_final(hidden_states), temb))
        p = self.config.patch_size
        patches = hidden_states.reshape(batch, frames, height // p, width // p, -1, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def embed(self, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, T, C, H, W), text (B, L, D) → text tokens (B, L, dim), video tokens (B, T·H/p·W/p, dim)."""
        encoder_hidden_states = self.patch_embed.text_proj(text)
        hidden_states = self.patch_embed.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2)
        # Of a single frame this would be a transposed view, and compiled blocks then return gradients that are 3 % off
        # (Inductor of torch 2.13 on a CPU).
        hidden_states = hidden_states.unflatten(0, latents.shape[:2]).flatten(1, 2).contiguous()
        text_tokens, most = encoder_hidden_states.shape[1], self.config.max_text_seq_length
        if text_tokens > most:
            raise SamplingError(
                f"The prompt is {text_tokens} tokens long; this model takes {most}. "
                "Encode it with FantasyID Text Encode, and do not concatenate prompts."
            )
        if self.config.use_learned_positional_embeddings:
            learned = self.patch_embed.pos_embedding.to(hidden_states)
            encoder_hidden_states = encoder_hidden_states + learned[:, :text_tokens]
            hidden_states = hidden_states + learned[:, most : most + hidden_states.shape[1]]
        return encoder_hidden_states, hidden_states

    def check_sizes(self, frames: int, height: int, width: int) -> None:
        """Raise SamplingError where latents of `frames` × `height` × `width` do not suit this model."""
        c = self.config
        if height % c.patch_size or width % c.patch_size:
            raise SamplingError(
                f"Latent height and width must be multiples of {c.patch_size}; got {height} × {width}. "
                "Choose the video's size accordingly."
            )
        if c.use_learned_positional_embeddings and not self.trained_at(frames, height, width):
            scale, time = 8, c.temporal_compression_ratio
            raise SamplingError(
                f"This model was trained with fixed positions: {self.trained_size}. {width * scale} × {height * scale} "
                f"pixels and {(frames - 1) * time + 1} frames were asked for; set width, height and frames to what it "
                "knows. Longer videos of its size need FantasyID Long Video before the sampler."
                f"{self.other_shape(height, width)}"
            )

    def trained_at(self, frames: int, height: int, width: int) -> bool:
        """Whether the model was trained on latents of this size; with rotary positions alone it takes others too."""
        c = self.config
        return (height, width) == (c.sample_height, c.sample_width) and 1 <= frames <= c.latent_frames

    def other_shape(self, height: int, width: int) -> str:
        """For messages: the way to latents of `height` × `width`, where that is another shape than the model's; else
        nothing.
        """
        c = self.config
        if abs(width * c.sample_height - height * c.sample_width) <= c.sample_height * c.patch_size:
            return ""
        kind = "portrait" if height > width else "square" if height == width else "landscape"
        return (
            f" For a {kind} video make one of the size that it knows and lay it on a {kind} canvas, as workflow "
            "'15 Portrait video' does."
        )

    def work_at(self, frames: int, height: int, width: int) -> float:
        """How many times as many tokens latents of this size are as those that the model was trained on."""
        c = self.config
        return frames * height * width / (c.latent_frames * c.sample_height * c.sample_width)

    @property
    def trained_size(self) -> str:
        """For messages: the pixels and frames that the model was trained on."""
        c = self.config
        return f"{c.sample_width * 8} × {c.sample_height * 8} pixels and at most {c.sample_frames} frames"

    def rotary_embedding(
        self,
        frames: int,
        height: int,
        width: int,
        device: torch.device | str,
        *,
        grid: tuple[int, int] | None = None,
        scale: Axes = (1.0, 1.0, 1.0),
        shift: Axes = (0.0, 0.0, 0.0),
    ) -> Rotary | None:
        """Cosines and sines for latents of this size; None for a model without rotary positions.

        Args:
            grid: rows and columns of patches that positions are scaled to; by default those the model was trained on.
            scale, shift: for frames, rows and columns, every position times the one plus the other.
        """
        c = self.config
        if not c.use_rotary_positional_embeddings:
            return None
        patches = (height // c.patch_size, width // c.patch_size)
        return rotary_embedding(c.attention_head_dim, grid or c.grid, frames, patches, device, scale, shift)


@uncompiled
def _inject(
    injector: Injector, hidden_states: Tensor, layer: int, attention: LayerAttention, progress: float
) -> Tensor:
    """All is fused here already, and a compiled version would bind itself to numbers that an artist varies."""
    return injector.add_to(hidden_states, layer, attention, progress)


def run_as_is(
    index: int,
    block: nn.Module,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: Rotary | None,
    **more,
) -> tuple[Tensor, Tensor]:
    """One block, where nobody takes part: a `RunBlock`. `more` is for the block, such as `fp8`."""
    return block(hidden_states, encoder_hidden_states, temb, image_rotary_emb, **more)


def timestep_sinusoids(timestep: Tensor, dim: int) -> Tensor:
    """Timesteps (B,) → (B, dim) float32, cosines, then sines."""
    half = dim // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[:, None].float() * exponents.exp()[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


def build(
    config: Mapping,
    published: Published,
    model_class: type[Model] = FantasyIDTransformer,
    operations: Operations = TORCH,
) -> Model:
    """The DiT with its injection layers that a published `config.json` and file describe, on the meta device.

    Raises:
        WeightsError: configuration and file do not fit each other, or the model is of another kind.
    """
    if config.get("patch_size_t") or config.get("ofs_embed_dim"):
        raise WeightsError(
            "This is a CogVideoX 1.5 transformer; FantasyID was trained on CogVideoX 1.0 (5B I2V). Use the 1.0 model."
        )
    with configured("FantasyID transformer"):
        sizes = TransformerConfig.of(config)
        with torch.device("meta"):
            return model_class(sizes, InjectionSizes.of(published, sizes), operations)


def from_published(config: Mapping, published: Published) -> FantasyIDTransformer:
    """The DiT with its injection layers from a published `config.json` and state dict.

    Raises:
        WeightsError: the tensors do not fit the configuration, or the model is of another kind, or quantised.
    """
    if published.is_quantised:
        raise WeightsError(
            "This transformer is in one of ComfyUI's quantised formats, which ComfyUI alone computes with: take the "
            "file in bf16 or fp16 here."
        )
    model = build(config, published)
    load_into(model, published.transformer, what="video transformer")
    return model.eval().requires_grad_(False)
