"""The sizes of a CogVideoX transformer: from its published `config.json`, or from its tensors where there is none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import WeightsError
from ..fusion.checkpoint import Published
from ..io.weights import known_entries

TIME_SCALE, FPS = 4, 8  # frames per latent after the first, of CogVideoX's VAE; frames per second, as released
RELEASE_GRID = (30, 45)  # patches of 480 × 720 pixels; the release's pipeline scales the rotary grid to it
FIXED = {
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "norm_elementwise_affine": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "patch_bias": True,
}
"""What diffusers' CogVideoX could have otherwise, and no published one has."""


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the DiT, under the names of the published `config.json`; defaults as diffusers'.

    Attributes:
        in_channels: of the noisy latents and, behind them, the image latents.
        sample_width, sample_height: latents that it was trained on; sample_frames: frames of its videos.
        temporal_compression_ratio: frames a latent, after the first.
        patch_size: latents a side that make one token.
        max_text_seq_length: most text tokens.
        use_learned_positional_embeddings: positions that are tensors of the file; they bind it to one size.
        cross_attn_interval: an identity is injected after every how many blocks (release: 1; 2 in the lighter variant).
        layer_attention_head_dim: head width of the injection layers (release: 128).
        first_frame_condition: trained with the reference crop as first latent frame (release); else that is left out.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    num_layers: int = 30
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_eps: float = 1e-5
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    cross_attn_interval: int = 1
    layer_attention_head_dim: int = 128
    first_frame_condition: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TransformerConfig":
        """What a `config.json` says; entries that it does not know, such as diffusers' version, are left out.

        Raises:
            ValueError: another kind of transformer.
        """
        return cls(**known_entries(cls, config, FIXED))

    @property
    def dim(self) -> int:
        """Width of its tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the size that it was trained on."""
        return self.sample_height // self.patch_size, self.sample_width // self.patch_size

    @property
    def latent_frames(self) -> int:
        """Latents of the longest video that it was trained on."""
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    @property
    def positions(self) -> int:
        """Tokens of text and video at the size that it was trained on."""
        rows, columns = self.grid
        return self.max_text_seq_length + self.latent_frames * rows * columns


@dataclass(frozen=True)
class InjectionSizes:
    """Sizes of the injection layers.

    Attributes:
        layers: how many there are; 0 for a plain CogVideoX.
        token_dim: K, width of the identity tokens.
        inner_dim: heads × head width.
    """

    layers: int = 0
    token_dim: int = 2048
    inner_dim: int = 2048

    @classmethod
    def of(cls, published: Published, config: TransformerConfig) -> "InjectionSizes":
        """Those of a published file, no layers without identity weights. Raises ValueError for some that do not fit."""
        if not published.has_identity:
            return NO_INJECTION
        tensors = published.layer_attention
        token_dim, inner_dim = len(tensors["0.norm1.weight"]), len(tensors["0.to_kv.weight"]) // 2
        sizes = cls(len({name.split(".")[0] for name in tensors}), token_dim, inner_dim)
        wanted = len(range(0, config.num_layers, config.cross_attn_interval))
        if sizes.layers != wanted or sizes.inner_dim % config.layer_attention_head_dim:
            raise ValueError(
                f"{sizes.layers} injection layers of width {sizes.inner_dim} do not fit {config.num_layers} blocks, "
                f"cross_attn_interval {config.cross_attn_interval} and "
                f"layer_attention_head_dim {config.layer_attention_head_dim}"
            )
        return sizes


NO_INJECTION = InjectionSizes()


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
