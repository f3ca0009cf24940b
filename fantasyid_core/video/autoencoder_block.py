"""CogVideoX's autoencoder blocks in half the memory: the same operations in the same order, on less at once.

diffusers pads every convolution's input by a copy, keeps the inputs of convolutions over one frame for the next ones,
which never look at them, and computes the spatial norms' scale and shift at the full size of the picture.
"""

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXResnetBlock3D,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor, nn

AT_ONCE = 1 << 27  # values of a convolution's input; more are cut into groups of frames


def make_lean(autoencoder: nn.Module) -> None:
    """Give the blocks of an `AutoencoderKLCogVideoX` these classes, in place; with gradients on they act as before."""
    for module in autoencoder.modules():
        if type(module) in _LEAN:
            module.__class__ = _LEAN[type(module)]


class LeanConv(CogVideoXCausalConv3d):
    """Causal in time: a few output frames at once, each of its frame and the two before."""

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, C, T, H, W) and the last two frames before it, or none → (B, D, T, H, W) and its own last two.

        The frames before it are overwritten by those handed back.
        """
        before = self.time_kernel_size - 1
        if torch.is_grad_enabled() or self.pad_mode == "replicate" or before == 0:
            return super().forward(inputs, conv_cache)
        past = inputs[:, :, :1].repeat(1, 1, before, 1, 1) if conv_cache is None else conv_cache
        out = None
        for start, stop in _parts(inputs):
            window = inputs[:, :, max(start - before, 0) : stop]
            if start < before:
                window = torch.cat([past[:, :, start:], window], 2)
            out = _put(out, self.conv(window), inputs, start)
        kept = inputs[:, :, -before:]
        if kept.shape[2] < before:
            kept = torch.cat([past[:, :, kept.shape[2] :], kept], 2)
        return out, past.copy_(kept)


class LeanSpatialNorm(CogVideoXSpatialNorm3D):
    """Scale and shift from the latents at their own size: a convolution over single pixels commutes with enlarging."""

    def forward(self, f: Tensor, zq: Tensor, conv_cache: dict | None = None) -> tuple[Tensor, dict]:
        """Features (B, C, T, H, W), latents (B, c, t, h, w) → the same features, normalised; nothing to keep."""
        if torch.is_grad_enabled() or self.conv_y.time_kernel_size != 1:
            return super().forward(f, zq, conv_cache)
        out = self.norm_layer(f)
        scale, shift = self.conv_y(zq)[0], self.conv_b(zq)[0]
        frames, latents, size = f.shape[2], zq.shape[2], f.shape[-2:]
        alone = int(frames > 1 and frames % 2 == 1)  # the first latent stands for one frame
        shown = [i if i < alone else alone + (i - alone) * (latents - alone) // (frames - alone) for i in range(frames)]
        for latent in dict.fromkeys(shown):
            part = out[:, :, shown.index(latent) : shown.index(latent) + shown.count(latent)]
            part.mul_(F.interpolate(scale[:, :, latent], size=size)[:, :, None])
            part.add_(F.interpolate(shift[:, :, latent], size=size)[:, :, None])
        return out, {}


class LeanResnet(CogVideoXResnetBlock3D):
    """Works in place where it can, and lets go of every tensor as soon as the next is there."""

    def forward(
        self, inputs: Tensor, temb: Tensor | None = None, zq: Tensor | None = None, conv_cache: dict | None = None
    ) -> tuple[Tensor, dict]:
        """(B, C, T, H, W) → (B, D, T, H, W), as the block of diffusers without time embedding."""
        if (
            torch.is_grad_enabled()
            or temb is not None
            or self.use_conv_shortcut
            or not isinstance(self.nonlinearity, nn.SiLU)
        ):
            return super().forward(inputs, temb, zq, conv_cache)
        before, kept, hidden = conv_cache or {}, {}, inputs
        for norm, conv in (("norm1", "conv1"), ("norm2", "conv2")):
            hidden = getattr(self, norm)(hidden) if zq is None else getattr(self, norm)(hidden, zq)[0]
            hidden = F.silu(hidden, inplace=True)
            hidden, kept[conv] = getattr(self, conv)(hidden, conv_cache=before.get(conv))
        if self.in_channels == self.out_channels:
            return hidden.add_(inputs), kept
        for start, stop in _parts(inputs):
            hidden[:, :, start:stop] += self.conv_shortcut(inputs[:, :, start:stop])
        return hidden, kept


class LeanUpsample(CogVideoXUpsample3D):
    """Enlarges and convolves frame by frame."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T or 2 T or 2 T − 1, 2 H, 2 W)."""
        if torch.is_grad_enabled():
            return super().forward(inputs)
        frames = list(range(inputs.shape[2]))
        if self.compress_time and len(frames) > 1:
            alone = len(frames) % 2
            frames = frames[:alone] + [i for i in frames[alone:] for _ in range(2)]
        out, last = None, None
        for i, frame in enumerate(frames):
            if frame != last:
                made, last = self.conv(F.interpolate(inputs[:, :, frame], scale_factor=2.0)), frame
            if out is None:
                out = made.new_empty(*made.shape[:2], len(frames), *made.shape[2:])
            out[:, :, i] = made
        return out


class LeanDownsample(CogVideoXDownsample3D):
    """Halves time and space frame by frame."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → (B, C, T or T / 2 or (T + 1) / 2, H / 2, W / 2)."""
        if torch.is_grad_enabled():
            return super().forward(x)
        frames = [(i,) for i in range(x.shape[2])]
        if self.compress_time and len(frames) > 1:
            alone = len(frames) % 2
            frames = [*frames[:alone], *((i, i + 1) for i in range(alone, len(frames), 2))]
        out = None
        for i, parts in enumerate(frames):
            frame = x[:, :, parts[0]] if len(parts) == 1 else x[:, :, parts[0] : parts[1] + 1].mean(2)
            made = self.conv(F.pad(frame, (0, 1, 0, 1)))
            if out is None:
                out = made.new_empty(*made.shape[:2], len(frames), *made.shape[2:])
            out[:, :, i] = made
        return out


_LEAN = {
    base: lean
    for lean in (LeanConv, LeanSpatialNorm, LeanResnet, LeanUpsample, LeanDownsample)
    for base in lean.__bases__
}


def _parts(x: Tensor) -> list[tuple[int, int]]:
    """Groups of frames of at most `AT_ONCE` values."""
    frames = x.shape[2]
    step = max(1, AT_ONCE // (x.numel() // frames))
    return [(start, min(start + step, frames)) for start in range(0, frames, step)]


def _put(out: Tensor | None, part: Tensor, like: Tensor, start: int) -> Tensor:
    """`part` as the frames from `start` on of a tensor with as many frames as `like`, made at the first part."""
    if out is None:
        if part.shape[2] == like.shape[2]:
            return part
        out = part.new_empty(*part.shape[:2], like.shape[2], *part.shape[3:])
    out[:, :, start : start + part.shape[2]] = part
    return out
