"""Stage vae: frames → latents → frames.

Options: `window` (frames of most batches; the autoencoder's first chunk has 9), `long_every` (every how many steps a
batch of whole clips, with a quarter of the samples), `face_weight` (of pixels of the face against others),
`gradient_weight`, `kl_weight`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import nano
from . import data, sheets
from .pool import MASK_SCALE, Pool
from .stage import Batch, Context, Stage, evaluating, trainable


def to_model(frames: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 → (B, 3, T, H, W) float in −1…1."""
    return (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)


def to_frames(pixels: Tensor) -> Tensor:
    """(B, 3, T, H, W) in −1…1 → (B, T, H, W, 3) float 0…1."""
    return ((pixels.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1)


def encode(vae: nn.Module, frames: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 → scaled latents (B, t, 16, h, w), the posterior's mean."""
    parts = [vae.encode(to_model(part)).latent_dist.mode() for part in frames.split(16)]
    return torch.cat(parts).float().transpose(1, 2) * vae.config.scaling_factor


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Scaled latents (B, t, 16, h, w) → frames (B, T, H, W, 3) float 0…1."""
    latents = latents.transpose(1, 2) / vae.config.scaling_factor
    return torch.cat([to_frames(vae.decode(part, return_dict=False)[0]) for part in latents.split(4)])


class Reconstruction(nn.Module):
    """L1 of pixels and of their differences to neighbours, and the divergence of the latents from a normal."""

    def __init__(self, vae: nn.Module, face_weight: float, gradient_weight: float, kl_weight: float):
        super().__init__()
        self.vae = vae
        self.face_weight, self.gradient_weight, self.kl_weight = face_weight, gradient_weight, kl_weight

    def forward(self, frames: Tensor, face: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Frames (B, T, H, W, 3) and face masks (B, T, H / 4, W / 4), uint8; noise (B, 16, t, h, w)."""
        pixels = to_model(frames)
        posterior = self.vae.encode(pixels).latent_dist
        mean, spread = posterior.mean.float(), posterior.std.float()
        made = self.vae.decode(mean + spread * noise, return_dict=False)[0].float()
        weight = face.float().flatten(0, 1)[:, None] / 255
        weight = F.interpolate(weight, scale_factor=MASK_SCALE, mode="bilinear").unflatten(0, face.shape[:2])
        weight = 1 + (self.face_weight - 1) * weight.transpose(1, 2)  # (B, 1, T, H, W)
        weight = weight / weight.mean()
        error = made - pixels
        l1 = (error.abs() * weight).mean()
        gradient = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (3, 4))
        kl = 0.5 * (mean.square() + spread.square() - 1 - 2 * spread.clamp(min=1e-12).log()).mean()
        loss = l1 + self.gradient_weight * gradient + self.kl_weight * kl
        return {"loss": loss, "l1": l1, "gradient": gradient, "kl": kl}


class VaeStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.options = {
            "window": 9,
            "long_every": 8,
            "face_weight": 3.0,
            "gradient_weight": 1.0,
            "kl_weight": 1e-4,
            "channels_last": True,
        } | dict(self.settings.options)
        vae = trainable(context.model.vae)
        if self.options["channels_last"] and context.device.type == "cuda":
            for weight in vae.parameters():
                if weight.ndim == 5:
                    weight.data = weight.data.to(memory_format=torch.channels_last_3d)
        self.objective = Reconstruction(
            vae, self.options["face_weight"], self.options["gradient_weight"], self.options["kl_weight"]
        )

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        pool, settings = self.context.pool, self.settings
        whole = step % self.options["long_every"] == self.options["long_every"] - 1
        length = pool.frames.shape[1]
        window = length if whole else min(self.options["window"], length)
        count = max(1, settings.batch // 4) if whole else settings.batch
        rows = data.randint(generator, pool.clips, count)
        start = data.randint(generator, length - window + 1, count, 1)
        times = start + torch.arange(window, device=rows.device)
        frames, face = pool.frames[rows[:, None], times], pool.face[rows[:, None], times]
        flip = data.rand(generator, count, 1, 1, 1) < 0.5
        frames = torch.where(flip[..., None], frames.flip(3), frames)
        face = torch.where(flip, face.flip(3), face)
        side = pool.frames.shape[2] // 8
        noise = data.randn(generator, count, 16, (window - 1) // 4 + 1, side, side)
        return {"frames": frames, "face": face, "noise": noise}

    def validate(self) -> dict[str, float]:
        pool, vae = self.context.validation, self.context.model.vae
        frames, face = pool.frames[: min(16, pool.clips)], pool.face[: min(16, pool.clips)]
        with evaluating(vae), self.context.autocast():
            made = decode(vae, encode(vae, frames))
        square = (made - frames.float() / 255).square().mean(-1)  # (B, T, H, W)
        inside = F.interpolate(face.float() / 255, scale_factor=MASK_SCALE)
        in_face = (square * inside).sum() / inside.sum().clamp(min=1)
        return {"psnr": _decibel(square.mean()), "psnr_face": _decibel(in_face)}

    def sheet(self) -> Tensor:
        pool, vae = self.context.validation, self.context.model.vae
        frames = pool.frames[: min(6, pool.clips)]
        with evaluating(vae), self.context.autocast():
            made = decode(vae, encode(vae, frames))
        columns = torch.linspace(0, frames.shape[1] - 1, 4).round().long().tolist()
        pairs = [x[:, i] for i in columns for x in (frames.float() / 255, made)]
        return sheets.grid(torch.stack(pairs, 1))

    def export(self) -> None:
        """Weights, and the factor that brings the latents to unit variance."""
        model, pool = self.context.model, self.context.pool
        vae = model.vae
        vae.register_to_config(scaling_factor=1.0)
        with evaluating(vae), torch.no_grad(), self.context.autocast():
            latents = encode(vae, pool.frames[: min(64, pool.clips)])
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        nano.write(model, self.context.model_folder, ["vae"])


def encoder_of(context: Context):
    """A function for `Pool.encode_with`."""
    vae = context.model.vae.eval()

    @torch.no_grad()
    def run(frames: Tensor) -> Tensor:
        with context.autocast():
            return encode(vae, frames)

    return run


def encode_pools(context: Context) -> None:
    """Give the pools the latents of this model's autoencoder."""
    vae = context.model.vae
    key = (vae.config.scaling_factor, sum(p.abs().sum().item() for p in vae.encoder.parameters()))
    for pool in (context.pool, context.validation):
        if isinstance(pool, Pool):
            pool.encode_with(encoder_of(context), key)


def _decibel(square_error: Tensor) -> float:
    return float(-10 * torch.log10(square_error.clamp(min=1e-10)))
