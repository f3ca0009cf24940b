"""The blocks of CogVideoX's autoencoder, for inference, in half of diffusers' memory: the same operations on less at
once.

diffusers pads every convolution's input by a copy, keeps the inputs of convolutions over one frame for the next ones,
which never look at them, and computes the spatial norms' scale and shift at the full size of the picture.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operations import TORCH, Operations

AT_ONCE = 1 << 27  # values of a convolution's input; more are cut into groups of frames
Cache = dict[nn.Module, Tensor]
"""The last frames that each causal convolution saw of the chunk before."""


class CausalConv(nn.Module):
    """Causal in time: a few output frames at once, each of its frame and those before."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, operations: Operations = TORCH):
        super().__init__()
        padding = (0, kernel // 2, kernel // 2)
        self.before = kernel - 1
        self.conv = operations.Conv3d(channels_in, channels_out, kernel, padding=padding)

    def forward(self, inputs: Tensor, cache: Cache) -> Tensor:
        """(B, C, T, H, W) → (B, D, T, H, W); what the cache has of the chunk before is overwritten by this one's."""
        if not self.before:
            return self.conv(inputs)
        past = cache[self] if self in cache else inputs[:, :, :1].repeat(1, 1, self.before, 1, 1)
        out: Any = None
        for start, stop in _parts(inputs):
            window = inputs[:, :, max(start - self.before, 0) : stop]
            if start < self.before:
                window = torch.cat([past[:, :, start:], window], 2)
            out = _put(out, self.conv(window), inputs, start)
        last = inputs[:, :, -self.before :]
        if last.shape[2] < self.before:
            last = torch.cat([past[:, :, last.shape[2] :], last], 2)
        cache[self] = past.copy_(last)
        return out


class SpatialNorm(nn.Module):
    """A group norm that the latents scale and shift, at their own size: a convolution over single pixels commutes with
    enlarging.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int, operations: Operations = TORCH):
        super().__init__()
        self.norm_layer = operations.GroupNorm(groups, channels, eps=1e-6)
        self.conv_y = CausalConv(latent_channels, channels, 1, operations)
        self.conv_b = CausalConv(latent_channels, channels, 1, operations)

    def forward(self, inputs: Tensor, latents: Tensor) -> Tensor:
        """Features (B, C, T, H, W), latents (B, c, t, h, w) → the same features, normalised."""
        out = self.norm_layer(inputs)
        scale, shift = self.conv_y(latents, {}), self.conv_b(latents, {})
        frames, count, size = inputs.shape[2], latents.shape[2], inputs.shape[-2:]
        alone = int(frames > 1 and frames % 2 == 1)  # the first latent stands for one frame
        shown = [i if i < alone else alone + (i - alone) * (count - alone) // (frames - alone) for i in range(frames)]
        for latent in dict.fromkeys(shown):
            part = out[:, :, shown.index(latent) : shown.index(latent) + shown.count(latent)]
            part.mul_(F.interpolate(scale[:, :, latent], size=size)[:, :, None])
            part.add_(F.interpolate(shift[:, :, latent], size=size)[:, :, None])
        return out


class Resnet(nn.Module):
    """Residual block. Works in place where it can, and lets go of every tensor as soon as the next is there.

    Args:
        latent_channels: those of the latents that scale and shift its norms, in the decoder; None in the encoder.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        groups: int,
        eps: float,
        latent_channels: int | None = None,
        operations: Operations = TORCH,
    ):
        super().__init__()
        self.in_channels, self.out_channels = channels_in, channels_out

        def norm(channels: int) -> nn.Module:
            if latent_channels is None:
                return operations.GroupNorm(groups, channels, eps=eps)
            return SpatialNorm(channels, latent_channels, groups, operations)

        self.norm1, self.norm2 = norm(channels_in), norm(channels_out)
        self.conv1 = CausalConv(channels_in, channels_out, 3, operations)
        self.conv2 = CausalConv(channels_out, channels_out, 3, operations)
        if channels_in != channels_out:
            self.conv_shortcut = operations.Conv3d(channels_in, channels_out, 1)

    def forward(self, inputs: Tensor, latents: Tensor | None, cache: Cache) -> Tensor:
        """(B, C, T, H, W) → (B, D, T, H, W)."""
        hidden = inputs
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            hidden = norm(hidden) if latents is None else norm(hidden, latents)
            hidden = conv(F.silu(hidden, inplace=True), cache)
        if self.in_channels == self.out_channels:
            return hidden.add_(inputs)
        for start, stop in _parts(inputs):
            hidden[:, :, start:stop] += self.conv_shortcut(inputs[:, :, start:stop])
        return hidden


class Upsample(nn.Module):
    """Enlarges and convolves frame by frame.

    Args:
        compress_time: whether it makes two frames of every one but the first.
    """

    def __init__(self, channels: int, compress_time: bool, operations: Operations = TORCH):
        super().__init__()
        self.compress_time = compress_time
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T or 2 T or 2 T − 1, 2 H, 2 W)."""
        frames = list(range(inputs.shape[2]))
        if self.compress_time and len(frames) > 1:
            alone = len(frames) % 2
            frames = frames[:alone] + [i for i in frames[alone:] for _ in range(2)]
        b, c, _, h, w = inputs.shape
        out, made = inputs.new_empty(b, c, len(frames), 2 * h, 2 * w), None
        for i, frame in enumerate(frames):
            if made is None or frame != frames[i - 1]:
                made = self.conv(F.interpolate(inputs[:, :, frame], scale_factor=2.0))
            out[:, :, i] = made
        return out


class Downsample(nn.Module):
    """Halves space, and time where asked, frame by frame."""

    def __init__(self, channels: int, compress_time: bool, operations: Operations = TORCH):
        super().__init__()
        self.compress_time = compress_time
        self.conv = operations.Conv2d(channels, channels, 3, stride=2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T or T / 2 or (T + 1) / 2, H / 2, W / 2)."""
        frames = [(i,) for i in range(inputs.shape[2])]
        if self.compress_time and len(frames) > 1:
            alone = len(frames) % 2
            frames = [*frames[:alone], *((i, i + 1) for i in range(alone, len(frames), 2))]
        b, c, _, h, w = inputs.shape
        out = inputs.new_empty(b, c, len(frames), h // 2, w // 2)
        for i, parts in enumerate(frames):
            frame = inputs[:, :, parts[0]] if len(parts) == 1 else inputs[:, :, parts[0] : parts[1] + 1].mean(2)
            out[:, :, i] = self.conv(F.pad(frame, (0, 1, 0, 1)))
        return out


def _parts(x: Tensor) -> list[tuple[int, int]]:
    """Groups of frames of at most `AT_ONCE` values."""
    frames = x.shape[2]
    step = max(1, AT_ONCE // (x.numel() // frames))
    return [(start, min(start + step, frames)) for start in range(0, frames, step)]


def _put(out: Tensor | None, part: Tensor, like: Tensor, start: int) -> Tensor:
    """`part` as the frames from `start` on of a tensor with as many frames as `like`, made at the first part."""
    if out is None and part.shape[2] == like.shape[2]:
        return part
    whole = part.new_empty(*part.shape[:2], like.shape[2], *part.shape[3:]) if out is None else out
    whole[:, :, start : start + part.shape[2]] = part
    return whole
