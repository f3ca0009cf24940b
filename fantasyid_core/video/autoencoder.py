"""CogVideoX's autoencoder under diffusers' names, for inference, and the colours in which previews show its latents."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dit.config import TIME_SCALE
from ..io.weights import known_entries
from ..operations import TORCH, Operations
from .autoencoder_block import Cache, CausalConv, Downsample, Resnet, SpatialNorm, Upsample
from .latents import SPACE_SCALE

FRAMES_AT_ONCE, LATENTS_AT_ONCE = 8, 2  # as it was trained; what is left over goes into the first chunk
FIXED = {"act_fn": "silu", "use_quant_conv": False, "use_post_quant_conv": False}
"""What diffusers' CogVideoX could have otherwise, and no published one has."""
DOWN, UP = "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, under the names of the published `config.json`; defaults as diffusers'.

    Attributes:
        block_out_channels: widths from the picture's size down; each but the last halves it.
        temporal_compression_ratio: frames a latent, after the first.
        scaling_factor: the transformer sees latents times this.
        latent_rgb_factors, latent_rgb_factors_bias: of our own, under ComfyUI's names: the colours of previews.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (DOWN,) * 4
    up_block_types: tuple[str, ...] = (UP,) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    scaling_factor: float = 1.15258426
    latent_rgb_factors: Any = None
    latent_rgb_factors_bias: Any = None

    def __post_init__(self):
        count = len(self.block_out_channels)
        if list(self.down_block_types) != [DOWN] * count or list(self.up_block_types) != [UP] * count:
            raise ValueError(f"its blocks are not {count} {DOWN} and {count} {UP}")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "AutoencoderConfig":
        """What a `config.json` says; entries that it does not know, such as diffusers' version, are left out.

        Raises:
            ValueError: another kind of autoencoder.
        """
        return cls(**known_entries(cls, config, FIXED))

    def published(self) -> dict[str, Any]:
        """As entries of a `config.json`."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def time_levels(self) -> int:
        """How many of the blocks halve time as well."""
        return int(math.log2(self.temporal_compression_ratio))


@dataclass(frozen=True, eq=False)
class Posterior:
    """The normal distribution of latents that show a video.

    Attributes:
        mean, std: (B, C, t, h, w) each.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw (B, C, t, h, w). A generator draws on its own device: one of the CPU draws alike everywhere."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


class Autoencoder(nn.Module):
    """Pixels (B, 3, T, H, W) in −1…1 to latents (B, C, t, h, w), not scaled, and back. It takes no gradients."""

    def __init__(self, config: AutoencoderConfig, operations: Operations = TORCH):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, operations)
        self.decoder = Decoder(config, operations)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Posterior:
        """T = 4 k + 1 frames make k + 1 latents."""
        cache: Cache = {}
        parts = [self.encoder(chunk, cache) for chunk in _chunks(pixels, FRAMES_AT_ONCE)]
        mean, log_variance = torch.cat(parts, 2).chunk(2, dim=1)
        return Posterior(mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Any number t of latents makes 4 t − 3 frames.

        Two latents at a time make 4 t frames of an even number, all of them wrong by one: such a number is made odd by
        showing the first latent twice.
        """
        even = latents.shape[2] > 1 and latents.shape[2] % 2 == 0
        if even:
            latents = torch.cat([latents[:, :, :1], latents], 2)
        cache: Cache = {}
        pixels = torch.cat([self.decoder(chunk, cache) for chunk in _chunks(latents, LATENTS_AT_ONCE)], 2)
        return pixels[:, :, TIME_SCALE:] if even else pixels


class Encoder(nn.Module):
    """Pixels → mean and logarithm of the variance of latents, along the channels."""

    def __init__(self, config: AutoencoderConfig, operations: Operations = TORCH):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = CausalConv(config.in_channels, widths[0], 3, operations)
        self.down_blocks = nn.ModuleList(
            DownBlock(config, below, above, i < len(widths) - 1, i < config.time_levels, operations)
            for i, (below, above) in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = MidBlock(config, widths[-1], None, operations)
        self.norm_out = operations.GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = CausalConv(widths[-1], 2 * config.latent_channels, 3, operations)

    def forward(self, pixels: Tensor, cache: Cache) -> Tensor:
        hidden = self.conv_in(pixels, cache)
        for block in self.down_blocks:
            hidden = block(hidden, cache)
        hidden = self.mid_block(hidden, None, cache)
        return self.conv_out(F.silu(self.norm_out(hidden), inplace=True), cache)


class Decoder(nn.Module):
    """Latents → pixels."""

    def __init__(self, config: AutoencoderConfig, operations: Operations = TORCH):
        super().__init__()
        widths = tuple(reversed(config.block_out_channels))
        self.conv_in = CausalConv(config.latent_channels, widths[0], 3, operations)
        self.mid_block = MidBlock(config, widths[0], config.latent_channels, operations)
        self.up_blocks = nn.ModuleList(
            UpBlock(config, below, above, i < len(widths) - 1, i < config.time_levels, operations)
            for i, (below, above) in enumerate(pairwise((widths[0], *widths)))
        )
        self.norm_out = SpatialNorm(widths[-1], config.latent_channels, config.norm_num_groups, operations)
        self.conv_out = CausalConv(widths[-1], config.out_channels, 3, operations)

    def forward(self, latents: Tensor, cache: Cache) -> Tensor:
        hidden = self.mid_block(self.conv_in(latents, cache), latents, cache)
        for block in self.up_blocks:
            hidden = block(hidden, latents, cache)
        return self.conv_out(F.silu(self.norm_out(hidden, latents), inplace=True), cache)


class DownBlock(nn.Module):
    """Residual blocks, then half the size."""

    def __init__(
        self,
        config: AutoencoderConfig,
        channels_in: int,
        channels_out: int,
        halves: bool,
        compress_time: bool,
        operations: Operations = TORCH,
    ):
        super().__init__()
        self.resnets = _resnets(config, channels_in, channels_out, config.layers_per_block, None, operations)
        self.downsamplers = nn.ModuleList([Downsample(channels_out, compress_time, operations)] if halves else [])

    def forward(self, hidden: Tensor, cache: Cache) -> Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden, None, cache)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
        return hidden


class MidBlock(nn.Module):
    """Two residual blocks at the latents' size."""

    def __init__(
        self, config: AutoencoderConfig, channels: int, latent_channels: int | None, operations: Operations = TORCH
    ):
        super().__init__()
        self.resnets = _resnets(config, channels, channels, 2, latent_channels, operations)

    def forward(self, hidden: Tensor, latents: Tensor | None, cache: Cache) -> Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden, latents, cache)
        return hidden


class UpBlock(nn.Module):
    """Residual blocks, then twice the size."""

    def __init__(
        self,
        config: AutoencoderConfig,
        channels_in: int,
        channels_out: int,
        doubles: bool,
        compress_time: bool,
        operations: Operations = TORCH,
    ):
        super().__init__()
        count = config.layers_per_block + 1
        self.resnets = _resnets(config, channels_in, channels_out, count, config.latent_channels, operations)
        self.upsamplers = nn.ModuleList([Upsample(channels_out, compress_time, operations)] if doubles else [])

    def forward(self, hidden: Tensor, latents: Tensor, cache: Cache) -> Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden, latents, cache)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden


def build(config: Mapping[str, Any], operations: Operations = TORCH) -> Autoencoder:
    """The autoencoder that a `config.json` describes, without its weights.

    Raises:
        TypeError, ValueError, …: see `weights.configured`.
    """
    return Autoencoder(AutoencoderConfig.of(config), operations)


def preview_colours(latents: Tensor, frames: Tensor) -> dict[str, list]:
    """What to add to the autoencoder's `config.json`: the linear fit from a latent to the mean colour of its pixels.

    Args:
        latents: (B, C, t, h, w), scaled as the model sees them.
        frames: (B, 4 t − 3, 8 h, 8 w, 3) in 0…1, what they show.
    """
    pixels = frames.permute(0, 4, 1, 2, 3) * 2 - 1
    pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, TIME_SCALE - 1, -1, -1), pixels], 2)  # the first has one frame
    means = F.avg_pool3d(pixels, (TIME_SCALE, SPACE_SCALE, SPACE_SCALE))
    rows = latents.movedim(1, -1).flatten(0, -2)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    *factors, bias = torch.linalg.lstsq(rows, means.movedim(1, -1).flatten(0, -2)).solution.tolist()
    return {"latent_rgb_factors": [_rounded(row) for row in factors], "latent_rgb_factors_bias": _rounded(bias)}


def _resnets(
    config: AutoencoderConfig,
    channels_in: int,
    channels_out: int,
    count: int,
    latent_channels: int | None,
    operations: Operations,
) -> nn.ModuleList:
    groups, eps = config.norm_num_groups, config.norm_eps
    return nn.ModuleList(
        Resnet(channels_in if i == 0 else channels_out, channels_out, groups, eps, latent_channels, operations)
        for i in range(count)
    )


def _chunks(x: Tensor, length: int) -> list[Tensor]:
    first = min(x.shape[2], length + x.shape[2] % length)
    return [x[:, :, :first], *x[:, :, first:].split(length, 2)] if first < x.shape[2] else [x]


def _rounded(row: list[float]) -> list[float]:
    return [round(value, 4) for value in row]
