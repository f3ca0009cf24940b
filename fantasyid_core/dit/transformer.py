"""The video DiT with identity injection: diffusers' CogVideoX transformer plus one `LayerAttention` per injected block.

State-dict names are those of the published checkpoint without its identity encoder (which `fusion` holds).
"""

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn

from ..errors import SamplingError, WeightsError
from ..fusion.checkpoint import Published
from ..io.weights import configured, load_into
from .block import FusedBlock
from .injection import Injector, LayerAttention
from .kernels import Rotary
from .step_cache import StepCache

RunBlock = Callable[[int, nn.Module, Tensor, Tensor, Tensor, Rotary | None], tuple[Tensor, Tensor]]

RELEASE_GRID = (30, 45)  # patches of 480 × 720 pixels; the release's pipeline scales the rotary grid to it


class FantasyIDTransformer(CogVideoXTransformer3DModel):
    """CogVideoX DiT whose blocks can take an identity.

    Args (besides diffusers', which the published `config.json` holds):
        injections: number of injection layers; 0 for a plain CogVideoX.
        token_dim: K, width of the identity tokens.
        layer_attention_dim: heads × head width of the injection layers.
        layer_attention_head_dim: head width (release: 128).
        cross_attn_interval: an identity is injected after every how many blocks (release: 1; 2 in the lighter variant).
        first_frame_condition: trained with the reference crop as first latent frame (release); else that is left out.
    """

    def __init__(
        self,
        *,
        injections: int = 0,
        token_dim: int = 2048,
        layer_attention_dim: int = 2048,
        layer_attention_head_dim: int = 128,
        cross_attn_interval: int = 1,
        first_frame_condition: bool = True,
        **config,
    ):
        super().__init__(**config)
        dim = self.config.num_attention_heads * self.config.attention_head_dim
        for block in self.transformer_blocks:
            block.__class__ = FusedBlock
        self.cross_attn_interval = cross_attn_interval
        self.first_frame_condition = first_frame_condition
        self.layer_attention = nn.ModuleList(
            LayerAttention(dim, token_dim, layer_attention_dim, layer_attention_head_dim) for _ in range(injections)
        )

    @torch.compiler.disable(recursive=False)  # block by block: all share one compiled code
    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        timestep: Tensor,
        *,
        rotary: Rotary | None = None,
        injector: Injector | None = None,
        progress: float = 0.0,
        run_block: RunBlock | None = None,
        cache: StepCache | None = None,
        branch: Hashable = (),
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latents: (B, T, C, H, W) noisy latents, then image latents, along C.
            text: (B, L, D) text embeddings, L ≤ 226.
            timestep: (B,) in 0…999.
            rotary: cosines and sines from `rotary_embedding`; None for a model without rotary positions.
            injector: of the identities; None injects nothing.
            progress: 0 first step … 1 last; decides which identities act.
            run_block: how to run one block, where a host wants to take part; called with
                (index, block, visual tokens, text tokens, time embedding, rotary).
            cache: may skip the blocks after the first, with their injections; None computes all.
            branch: for the cache, which guidance branches are in the batch.

        Returns:
            (B, T, out_channels, H, W), the dtype of `latents`.

        Raises:
            SamplingError: more text than the model has positions for.
        """
        time, words, visual = self._tokens(latents, text, timestep)
        through = functools.partial(self._through, run_block or run_as_is, time, rotary, injector, progress)
        if cache is None:
            visual, _ = through(visual, words, slice(None))
        else:
            visual = cache.apply(through, visual, words, branch, progress)
        return self._velocity(visual, time, latents.shape)

    @torch.compiler.disable(recursive=False)
    def _through(
        self,
        run_block: RunBlock,
        time: Tensor,
        rotary: Rotary | None,
        injector: Injector | None,
        progress: float,
        visual: Tensor,
        words: Tensor,
        blocks: slice,
    ) -> tuple[Tensor, Tensor]:
        for i in range(*blocks.indices(len(self.transformer_blocks))):
            visual, words = run_block(i, self.transformer_blocks[i], visual, words, time, rotary)
            if injector is not None and i % self.cross_attn_interval == 0:
                layer = i // self.cross_attn_interval
                visual = _inject(injector, visual, layer, self.layer_attention[layer], progress)
        return visual, words

    @torch.compiler.disable
    def _tokens(self, latents: Tensor, text: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time embedding (B, T), text tokens, visual tokens."""
        return self.time_embedding(self.time_proj(timestep).to(latents.dtype)), *self.embed(latents, text)

    @torch.compiler.disable
    def _velocity(self, visual: Tensor, time: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, _, height, width = shape
        visual = self.proj_out(self.norm_out(self.norm_final(visual), temb=time))
        p = self.config.patch_size
        patches = visual.reshape(batch, frames, height // p, width // p, -1, p, p)
        return patches.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def embed(self, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, T, C, H, W), text (B, L, D) → text tokens (B, L, dim), visual tokens (B, T·H/p·W/p, dim)."""
        words = self.patch_embed.text_proj(text)
        visual = self.patch_embed.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2)
        # Of a single frame this would be a transposed view, and compiled blocks then return gradients that are 3 % off
        # (Inductor of torch 2.13 on a CPU).
        visual = visual.unflatten(0, latents.shape[:2]).flatten(1, 2).contiguous()
        if words.shape[1] > self.config.max_text_seq_length:
            raise SamplingError(
                f"The prompt is {words.shape[1]} tokens long; this model takes {self.config.max_text_seq_length}. "
                "Encode it with FantasyID Text Encode, and do not concatenate prompts."
            )
        if self.config.use_learned_positional_embeddings:
            learned, start = self.patch_embed.pos_embedding.to(visual), self.config.max_text_seq_length
            words = words + learned[:, : words.shape[1]]
            visual = visual + learned[:, start : start + visual.shape[1]]
        return words, visual

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
            )

    def trained_at(self, frames: int, height: int, width: int) -> bool:
        """Whether the model was trained on latents of this size; with rotary positions alone it takes others too."""
        c = self.config
        most = (c.sample_frames - 1) // c.temporal_compression_ratio + 1
        return (height, width) == (c.sample_height, c.sample_width) and 1 <= frames <= most

    def work_at(self, frames: int, height: int, width: int) -> float:
        """How many times as many tokens latents of this size are as those that the model was trained on."""
        c = self.config
        most = (c.sample_frames - 1) // c.temporal_compression_ratio + 1
        return frames * height * width / (most * c.sample_height * c.sample_width)

    @property
    def trained_size(self) -> str:
        """For messages: the pixels and frames that the model was trained on."""
        c = self.config
        return f"{c.sample_width * 8} × {c.sample_height * 8} pixels and at most {c.sample_frames} frames"

    def rotary_embedding(self, frames: int, height: int, width: int, device: torch.device | str) -> Rotary | None:
        """Cosines and sines for latents of this size, scaled to the size the model was trained at."""
        c = self.config
        grid = (c.sample_height // c.patch_size, c.sample_width // c.patch_size)
        return self.rotary_embedding_on(grid, frames, height, width, device)

    def rotary_embedding_on(
        self, base: tuple[int, int], frames: int, height: int, width: int, device: torch.device | str
    ) -> Rotary | None:
        """As `rotary_embedding`, on a base grid of (rows, columns) patches."""
        c = self.config
        if not c.use_rotary_positional_embeddings:
            return None
        grid = (height // c.patch_size, width // c.patch_size)
        crop = get_resize_crop_region_for_grid(grid, base[1], base[0])
        return get_3d_rotary_pos_embed(c.attention_head_dim, crop, grid, frames, device=device)

    def rotary_embedding_moved(
        self,
        scale: tuple[float, float, float],
        shift: tuple[float, float, float],
        frames: int,
        height: int,
        width: int,
        device: torch.device | str,
    ) -> Rotary | None:
        """As `rotary_embedding`, every position times `scale` plus `shift`, each for frames, rows and columns."""
        c = self.config
        if not c.use_rotary_positional_embeddings:
            return None
        base = (c.sample_height // c.patch_size, c.sample_width // c.patch_size)
        rows, columns = grid = (height // c.patch_size, width // c.patch_size)
        (top, left), (bottom, right) = get_resize_crop_region_for_grid(grid, base[1], base[0])
        positions = (
            torch.arange(frames, device=device, dtype=torch.float32),
            torch.linspace(top, bottom * (rows - 1) / rows, rows, device=device),
            torch.linspace(left, right * (columns - 1) / columns, columns, device=device),
        )
        widths = (c.attention_head_dim // 4, *[c.attention_head_dim // 8 * 3] * 2)
        axes = [
            get_1d_rotary_pos_embed(width, factor * position + offset, use_real=True)
            for width, position, factor, offset in zip(widths, positions, scale, shift, strict=True)
        ]
        whole = (frames, rows, columns, -1)
        shapes = ((frames, 1, 1, -1), (1, rows, 1, -1), (1, 1, columns, -1))
        cos, sin = (
            torch.cat([part.view(shape).expand(whole) for part, shape in zip(parts, shapes, strict=True)], -1).flatten(
                0, 2
            )
            for parts in zip(*axes, strict=True)
        )
        return cos, sin


@torch.compiler.disable
def _inject(injector: Injector, visual: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
    """All is fused here already, and a compiled version would bind itself to numbers that an artist varies."""
    return injector.add_to(visual, layer, attention, progress)


def run_as_is(
    index: int, block: nn.Module, visual: Tensor, words: Tensor, time: Tensor, rotary: Rotary | None, **more
) -> tuple[Tensor, Tensor]:
    """One block, where nobody takes part: a `RunBlock`. `more` is for the block, such as `fp8`."""
    return block(hidden_states=visual, encoder_hidden_states=words, temb=time, image_rotary_emb=rotary, **more)


def from_published(
    config: Mapping, published: Published, model_class: type[FantasyIDTransformer] = FantasyIDTransformer
) -> FantasyIDTransformer:
    """Build the DiT with its injection layers from a published `config.json` and state dict.

    Raises:
        WeightsError: the tensors do not fit the configuration, or the model is of another kind.
    """
    if config.get("patch_size_t") or config.get("ofs_embed_dim"):
        raise WeightsError(
            "This is a CogVideoX 1.5 transformer; FantasyID was trained on CogVideoX 1.0 (5B I2V). Use the 1.0 model."
        )
    with configured("FantasyID transformer"):
        extra = _injection_arguments(config, published)
        with torch.device("meta"):
            model = model_class(**diffusers_arguments(config), **extra)
    injection = {f"layer_attention.{name}": tensor for name, tensor in published.layer_attention.items()}
    load_into(model, published.dit | injection, what="video transformer")
    return model.eval().requires_grad_(False)


def _injection_arguments(config: Mapping, published: Published) -> dict:
    extra = {
        "cross_attn_interval": int(config.get("cross_attn_interval", 1)),
        "first_frame_condition": bool(config.get("first_frame_condition", True)),
    }
    if published.has_identity:
        twice_inner, token_dim = published.layer_attention["0.to_kv.weight"].shape
        extra |= {
            "injections": len({name.split(".")[0] for name in published.layer_attention}),
            "token_dim": token_dim,
            "layer_attention_dim": twice_inner // 2,
            "layer_attention_head_dim": int(config.get("layer_attention_head_dim", 128)),
        }
        wanted = len(range(0, config["num_layers"], extra["cross_attn_interval"]))
        if extra["injections"] != wanted or extra["layer_attention_dim"] % extra["layer_attention_head_dim"]:
            raise ValueError(
                f"{extra['injections']} injection layers of width {extra['layer_attention_dim']} do not fit "
                f"{config['num_layers']} blocks, cross_attn_interval {extra['cross_attn_interval']} and "
                f"layer_attention_head_dim {extra['layer_attention_head_dim']}"
            )
    return extra


def diffusers_arguments(config: Mapping) -> dict:
    """What diffusers' CogVideoX transformer takes of a published `config.json`."""
    known = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


def infer_config(published: Published) -> dict:
    """The configuration of a transformer that comes as a single file without one: sizes from its tensors.

    Sample size and frames are the release's (720 × 480, 49) where the file has learned positions.

    Raises:
        WeightsError: no CogVideoX transformer under diffusers' names, or one with positions of another size.
    """
    dit = published.dit
    try:
        dim, channels, patch, _ = dit["patch_embed.proj.weight"].shape
        head_dim = dit["transformer_blocks.0.attn1.norm_q.weight"].shape[0]
        time_dim = dit["time_embedding.linear_2.weight"].shape[0]
        text_dim = dit["patch_embed.text_proj.weight"].shape[1]
        out_channels = dit["proj_out.weight"].shape[0] // patch**2
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"This file holds no CogVideoX transformer under diffusers' names (looked for {error}). "
            "Use a transformer of CogVideoX-5B-I2V or FantasyID as diffusers writes it."
        ) from error
    layers = len({name.split(".")[1] for name in dit if name.startswith("transformer_blocks.")})
    injections = len({name.split(".")[0] for name in published.layer_attention})
    positions = dit.get("patch_embed.pos_embedding")
    text_length, frames = 226, 13
    if positions is not None and positions.shape[1] != text_length + frames * RELEASE_GRID[0] * RELEASE_GRID[1]:
        raise WeightsError(
            f"This transformer has learned positions for {positions.shape[1]} tokens, not for 720 × 480 pixels and 49 "
            "frames. Its size cannot be told from the file: put it into a folder with its config.json."
        )
    return {
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": out_channels,
        "num_layers": layers,
        "time_embed_dim": time_dim,
        "text_embed_dim": text_dim,
        "patch_size": patch,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": positions is not None,
        "cross_attn_interval": layers // injections if injections else 1,
    }
