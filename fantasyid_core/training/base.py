"""Stage base: text to video without identity, text encoder and DiT together.

Options: `text_dropped` (share of samples whose text is empty, for guidance), `face_weight` (of latents of the face).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import bytes_text, nano
from ..sampling import denoise, guide
from . import data, sheets
from .diffusion import FIXED_TIMES, Noising, Rotary, spread_times, weighted
from .stage import Batch, Context, Stage, evaluating, trainable
from .vae import decode, encode_pools

SHEET_STEPS, SHEET_GUIDANCE = 20, 4.0


class BaseObjective(nn.Module):
    """Velocity loss of the DiT on the text encoder's embeddings; zeros where the release has image latents."""

    def __init__(self, transformer: nn.Module, text: nn.Module, face_weight: float, device: torch.device):
        super().__init__()
        self.transformer, self.text = transformer, text
        self.noising, self.rotary, self.face_weight = Noising(device), Rotary(transformer), face_weight

    def forward(self, latents: Tensor, face: Tensor, ids: Tensor, noise: Tensor, time: Tensor) -> dict[str, Tensor]:
        """Latents and noise (B, t, 16, h, w), face (B, t, h, w), ids (B, L), times (B,)."""
        noisy, velocity = self.noising(latents, noise, time)
        words = self.text(input_ids=ids).last_hidden_state
        seen = torch.cat([noisy, torch.zeros_like(noisy)], 2)
        made = self.transformer(seen, words, time, rotary=self.rotary(latents))
        return {"loss": weighted(made - velocity, face, self.face_weight)}


class BaseStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.options = {"text_dropped": 0.1, "face_weight": 1.5} | dict(self.settings.options)
        model = context.model
        encode_pools(context)
        self.empty = bytes_text.encode_batch([""]).to(context.device)
        model.transformer.layer_attention.requires_grad_(False)
        self.objective = BaseObjective(
            trainable(model.transformer), trainable(model.text), self.options["face_weight"], context.device
        )
        model.transformer.layer_attention.requires_grad_(False)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        pool, count = self.context.pool, self.settings.batch
        rows = data.randint(generator, pool.clips, count)
        latents = pool.latents[rows].float()
        dropped = data.rand(generator, count, 1) < self.options["text_dropped"]
        return {
            "latents": latents,
            "face": pool.face_latent[rows],
            "ids": torch.where(dropped, self.empty, pool.caption[rows].long()),
            "noise": data.randn(generator, *latents.shape),
            "time": spread_times(count, generator),
        }

    def compile(self) -> list[nn.Module]:
        return list(self.context.model.transformer.transformer_blocks)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        pool = self.context.validation
        return losses_at_fixed_times(self.context, self._loss, pool.latents[: min(64, pool.clips)])

    def _loss(self, rows: slice, noise: Tensor, time: Tensor) -> Tensor:
        pool = self.context.validation
        latents = pool.latents[rows].float()
        return self.objective(latents, pool.face_latent[rows], pool.caption[rows].long(), noise, time)["loss"]

    @torch.no_grad()
    def sheet(self) -> Tensor:
        """Six validation captions: five generated frames, the middle one of the true clip."""
        context, pool = self.context, self.context.validation
        rows = slice(0, min(6, pool.clips))
        with context.autocast():
            words, empty = (
                self.context.model.text(input_ids=x).last_hidden_state for x in (pool.caption[rows].long(), self.empty)
            )

        def velocity(latents: Tensor, time: Tensor, both: Tensor) -> Tensor:
            seen = torch.cat([latents, torch.zeros_like(latents)], 2)
            return context.model.transformer(seen, both, time, rotary=self.objective.rotary(latents))

        made = generate(context, velocity, words, empty, pool.latents[rows])
        truth = pool.frames[rows, pool.frames.shape[1] // 2][:, None].float() / 255
        return sheets.grid(torch.cat([five_frames(made), truth], 1))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["transformer", "text_encoder"])


def losses_at_fixed_times(
    context: Context, loss: Callable[[slice, Tensor, Tensor], Tensor], latents: Tensor
) -> dict[str, float]:
    """`loss(rows, noise, time)` of the clips whose latents are given, at `FIXED_TIMES`, always with the same noise."""
    found, count = {}, len(latents)
    with context.autocast():
        for time in FIXED_TIMES:
            total = 0.0
            for start in range(0, count, 32):
                rows = slice(start, min(start + 32, count))
                like = latents[rows]
                noise = data.randn(torch.Generator(context.device).manual_seed(start + time), *like.shape)
                times = torch.full((len(like),), time, device=context.device)
                total = total + loss(rows, noise, times) * len(like)
            found[f"loss_at_{time}"] = float(total / count)
    return found | {"loss": sum(found.values()) / len(found)}


@torch.no_grad()
def generate(
    context: Context,
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    words: Tensor,
    empty: Tensor,
    like: Tensor,
    guidance: float = SHEET_GUIDANCE,
) -> Tensor:
    """Frames (B, T, H, W, 3) 0…1 for embeddings (B, L, D) and that of no text (1, L, D); latents sized as `like`."""
    count = len(like)
    both = torch.cat([empty.expand(count, -1, -1), words])

    def guided(latents: Tensor, timestep: int) -> Tensor:
        time = torch.full((2 * count,), timestep, device=context.device)
        unconditional, conditional = velocity(latents.repeat(2, 1, 1, 1, 1), time, both).float().chunk(2)
        return guide(unconditional, conditional, guidance)

    vae, transformer = context.model.vae, context.model.transformer
    noise = data.randn(torch.Generator(context.device).manual_seed(0), *like.shape)
    with evaluating(vae, transformer), context.autocast():
        return decode(vae, denoise(guided, noise, scheduler="ddim", steps=SHEET_STEPS))


def five_frames(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) → five of them, first and last included, (B, 5, H, W, 3)."""
    return frames[:, torch.linspace(0, frames.shape[1] - 1, 5).round().long().tolist()]
