"""The autoencoder's encoder and decoder once more, for training: the same sums in an order that a GPU likes.

The autoencoder's own modules hold the weights but take no gradients; `test_training_vae.py` compares with diffusers'.
Three things differ: tensors lie as (B, T, H, W, C), so that nothing is transposed between convolutions and norms; a
causal 3-D convolution is a 2-D one over frames stacked in the channels, for which cuDNN has far better kernels; the
decoder's maps of the latents, 1 × 1 × 1, are computed at the latents' size and never spread out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = dict[nn.Module, Tensor]
"""The last frames that each causal convolution saw of the chunk before."""

FRAMES_PER_CHUNK, LATENTS_PER_CHUNK = 8, 2


def encode(vae: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, T, H, W, 3) in −1…1, T = 4 k + 1 → mean and standard deviation of the latents (B, k + 1, h, w, 16)."""
    cache: Cache = {}
    parts = [_encoder(vae.encoder, chunk, cache) for chunk in _chunks(pixels, FRAMES_PER_CHUNK)]
    mean, log_variance = torch.cat(parts, 1).float().chunk(2, -1)
    return mean, (0.5 * log_variance.clamp(-30, 20)).exp()


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, k + 1, h, w, 16) → pixels (B, 4 k + 1, H, W, 3)."""
    cache: Cache = {}
    return torch.cat([_decoder(vae.decoder, chunk, cache) for chunk in _chunks(latents, LATENTS_PER_CHUNK)], 1)


def _chunks(x: Tensor, length: int) -> list[Tensor]:
    """As the autoencoder cuts: what is left over goes into the first."""
    first = min(x.shape[1], length + x.shape[1] % length)
    return [x[:, :first], *x[:, first:].split(length, 1)] if first < x.shape[1] else [x]


def _encoder(encoder: nn.Module, x: Tensor, cache: Cache) -> Tensor:
    x = _causal(encoder.conv_in, x, cache)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, None, cache)
        for sampler in block.downsamplers or ():
            x = _down(sampler, x)
    for resnet in encoder.mid_block.resnets:
        x = _resnet(resnet, x, None, cache)
    return _causal(encoder.conv_out, F.silu(_group_norm(encoder.norm_out, x)), cache)


def _decoder(decoder: nn.Module, latents: Tensor, cache: Cache) -> Tensor:
    x = _causal(decoder.conv_in, latents, cache)
    for resnet in decoder.mid_block.resnets:
        x = _resnet(resnet, x, latents, cache)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, latents, cache)
        for sampler in block.upsamplers or ():
            x = _up(sampler, x)
    return _causal(decoder.conv_out, F.silu(_norm(decoder.norm_out, x, latents)), cache)


def _resnet(resnet: nn.Module, x: Tensor, latents: Tensor | None, cache: Cache) -> Tensor:
    hidden = _causal(resnet.conv1, F.silu(_norm(resnet.norm1, x, latents)), cache)
    hidden = _causal(resnet.conv2, F.silu(_norm(resnet.norm2, hidden, latents)), cache)
    if resnet.in_channels != resnet.out_channels:
        x = F.linear(x, resnet.conv_shortcut.weight.flatten(1), resnet.conv_shortcut.bias)
    return hidden + x


def _causal(module: nn.Module, x: Tensor, cache: Cache) -> Tensor:
    """The convolution of a `CausalConv`, this frame and those before it."""
    weight, bias = module.conv.weight, module.conv.bias
    reach, frames = weight.shape[2], x.shape[1]
    before = cache.get(module)
    if before is None and frames == 1:
        cache[module] = x.expand(-1, reach - 1, -1, -1, -1)
        return _conv2d(x, weight.sum(2), bias, padding=weight.shape[-1] // 2)
    before = before if before is not None else x[:, :1].expand(-1, reach - 1, -1, -1, -1)
    cache[module] = torch.cat([before, x[:, -(reach - 1) :]], 1)[:, -(reach - 1) :]
    delayed = [torch.cat([before[:, i:], x[:, : frames + i - reach + 1]], 1) for i in range(reach - 1)]
    stacked = torch.cat([*delayed, x], -1)
    return _conv2d(stacked, weight.transpose(1, 2).flatten(1, 2), bias, padding=weight.shape[-1] // 2)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Frames (B, T, H, W, C) each through a convolution; tensor cores want channels in eights."""
    extra, channels_out = -weight.shape[1] % 8, len(weight)
    if extra:
        x, weight = F.pad(x, (0, extra)), F.pad(weight, (0, 0, 0, 0, 0, extra))
    if channels_out % 8:
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -channels_out % 8))
        bias = F.pad(bias, (0, -channels_out % 8))
    flat = x.flatten(0, 1).movedim(-1, 1)
    y = F.conv2d(flat, weight, bias, stride, padding).movedim(1, -1).unflatten(0, x.shape[:2])
    return y[..., :channels_out]


def _norm(norm: nn.Module, x: Tensor, latents: Tensor | None) -> Tensor:
    """A group norm, or one that the latents scale and shift (`SpatialNorm`)."""
    if latents is None:
        return _group_norm(norm, x)
    factor, offset = _affine(norm.norm_layer, x)
    scale, shift = (
        F.linear(latents, conv.conv.weight.flatten(1), conv.conv.bias).float() for conv in (norm.conv_y, norm.conv_b)
    )
    return _scaled(x, (factor * scale).to(x.dtype), (offset * scale + shift).to(x.dtype))


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    factor, offset = (each.to(x.dtype) for each in _affine(norm, x))
    return torch.addcmul(offset, x, factor)


def _affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """A group norm as factor and offset of every channel, (B, 1, 1, 1, C) float32: x is read, never copied."""
    groups = x.unflatten(-1, (norm.num_groups, -1))
    places, count = (1, 2, 3, 5), x[0].numel() // norm.num_groups
    with torch.autocast(x.device.type, enabled=False):  # which would copy x to float32
        mean = groups.sum(places, keepdim=True, dtype=torch.float32) / count
        square = (groups * groups).sum(places, keepdim=True, dtype=torch.float32) / count
    deviation = (square - mean.square()).clamp(min=0).add(norm.eps).rsqrt()
    per_group = (1, 1, 1, 1, norm.num_groups, -1)
    factor = deviation * norm.weight.float().view(per_group)
    offset = norm.bias.float().view(per_group) - mean * factor
    return factor.flatten(-2), offset.flatten(-2)


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B, T, H, W, C) times and plus maps (B, t, h, w, C), each place by its nearest; the maps are not spread out."""
    if x.shape[1] > 1 and x.shape[1] % 2:  # the first frame has a latent of its own
        first = _scaled(x[:, :1], scale[:, :1], shift[:, :1])
        return torch.cat([first, _scaled(x[:, 1:], scale[:, 1:], shift[:, 1:])], 1)
    counts = scale.shape[1:4]
    sizes = [(count, size // count) for count, size in zip(counts, x.shape[1:4], strict=True)]
    cells = x.unflatten(3, sizes[2]).unflatten(2, sizes[1]).unflatten(1, sizes[0])  # (B, t, ·, h, ·, w, ·, C)
    scale, shift = (each[:, :, None, :, None, :, None] for each in (scale, shift))
    return torch.addcmul(shift, cells, scale).reshape(x.shape)


def _repeated(x: Tensor, dim: int, times: int) -> Tensor:
    """Every slice so many times in a row; unlike `repeat_interleave` its gradient is a plain sum."""
    if times == 1:
        return x
    shape = [*x.shape[: dim + 1], times, *x.shape[dim + 1 :]]
    return x.unsqueeze(dim + 1).expand(shape).flatten(dim, dim + 1)


def _down(sampler: nn.Module, x: Tensor) -> Tensor:
    if sampler.compress_time and x.shape[1] > 1:
        single = x.shape[1] % 2
        x = torch.cat([x[:, :single], x[:, single:].unflatten(1, (-1, 2)).mean(2)], 1)
    return _conv2d(F.pad(x, (0, 0, 0, 1, 0, 1)), sampler.conv.weight, sampler.conv.bias, padding=0, stride=2)


def _up(sampler: nn.Module, x: Tensor) -> Tensor:
    x = _repeated(_repeated(x, 2, 2), 3, 2)
    if sampler.compress_time and x.shape[1] > 1:
        single = x.shape[1] % 2
        x = torch.cat([x[:, :single], _repeated(x[:, single:], 1, 2)], 1)
    return _conv2d(x, sampler.conv.weight, sampler.conv.bias, padding=1)
