"""Stage base: text to video without identity."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.injection import LayerAttention
from fantasyid_core.dit.transformer import run_as_is
from fantasyid_core.sampling.pipeline import Conditions, Guidance, sample

from .. import nano
from . import data, pictures
from .captions import Captions
from .diffusion import FIXED_TIMES, Noising, Rotary, on_pictures, stratified_timesteps, weighted_mse
from .landmark_loss import LandmarkLoss
from .options import BaseOptions
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable
from .vae import decode, encode_pools

SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 4.0


class BaseObjective(nn.Module):
    """Velocity loss of the DiT on the text encoder's embeddings; zeros where the release has image latents."""

    def __init__(self, transformer: nn.Module, text: nn.Module, options: BaseOptions, device: torch.device):
        super().__init__()
        self.transformer, self.text, self.options = transformer, text, options
        self.noising, self.rotary = Noising(device), Rotary(transformer)
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.landmark_loss = LandmarkLoss(width).to(device) if options.landmark_weight else None

    def forward(
        self,
        latents: Tensor,
        face: Tensor,
        text: Tensor,
        noise: Tensor,
        time: Tensor,
        landmarks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Latents and noise (B, t, 16, h, w), face (B, t, h, w), text as ids (B, L) or embeddings (B, L, D), times
        (B,); landmarks (B, T, 68, 2) in latents, for the landmark loss.
        """
        noisy, velocity = self.noising(latents, noise, time)
        words = text if text.is_floating_point() else self.text(input_ids=text).last_hidden_state.float()
        seen = torch.cat([noisy, torch.zeros_like(noisy)], 2)
        half_way: list[Tensor] = []

        def run_block(index: int, block: nn.Module, visual: Tensor, words: Tensor, time: Tensor, rotary) -> tuple:
            visual, words = run_as_is(index, block, visual, words, time, rotary)
            if index == self.options.landmark_block:
                half_way.append(visual)
            return visual, words

        made = self.transformer(seen, words, time, rotary=self.rotary(latents), run_block=run_block)
        loss = weighted_mse(made - velocity, face, self.options.face_weight)
        if self.landmark_loss is None or landmarks is None:
            return {"loss": loss}
        patch = self.transformer.config.patch_size
        cells = (latents.shape[1], latents.shape[-2] // patch, latents.shape[-1] // patch)
        located = self.landmark_loss(half_way[0], (landmarks + 0.5) / patch - 0.5, cells)
        return {"loss": loss + self.options.landmark_weight * located, "velocity": loss, "landmarks": located}


class BaseStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        model = context.model
        encode_pools(context)
        self.empty = byte_tokens.encode_batch([""]).to(context.device)
        last = len(model.transformer.transformer_blocks) - 1
        options: BaseOptions = self.settings.options
        self.options = replace(options, landmark_block=min(options.landmark_block, last))
        text = trainable(model.text) if self.options.train_text else model.text.eval().requires_grad_(False)
        self.objective = BaseObjective(trainable(model.transformer), text, self.options, context.device)
        model.transformer.layer_attention.requires_grad_(False)
        self.captions = None if self.options.train_text else Captions(context.pool, context.words)
        self.empty_words = None if self.options.train_text else context.words(self.empty)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        pool, count = self.context.pool, self.settings.batch
        if pictures := on_pictures(step, self.options.pictures):
            count *= self.options.pictures_batch
        drawn = pool.draw(count, generator, pictures)
        dropped = data.rand(generator, count, 1) < self.options.text_dropout
        if self.captions is None:
            text = torch.where(dropped, self.empty, pool.caption[drawn.captions].long())
        else:
            text = torch.where(dropped[..., None], self.empty_words, self.captions.of(drawn.captions))
        return {
            "latents": drawn.latents,
            "face": drawn.face,
            "text": text,
            "noise": data.randn(generator, *drawn.latents.shape),
            "time": stratified_timesteps(count, generator),
            "landmarks": (drawn.landmarks + 0.5) / 8 - 0.5,
        }

    def muon_parameters(self) -> list[nn.Parameter]:
        return parameters_of(*self.context.model.transformer.transformer_blocks, self.context.model.text.encoder.block)

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
    def sample_grid(self) -> Tensor:
        """Six validation captions: five generated frames, the middle one of the true clip."""
        context, pool = self.context, self.context.validation
        rows = slice(0, min(6, pool.clips))
        words, empty = (context.words(ids) for ids in (pool.caption[rows].long(), self.empty))

        latents = pool.latents[rows]
        made = generate(context, Conditions(words, empty, torch.zeros_like(latents, dtype=torch.float32)))
        truth = pool.frames[rows, pool.frames.shape[1] // 2][:, None].float() / 255
        return pictures.grid(torch.cat([five_frames(made), truth], 1))

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
def generate(context: Context, conditions: Conditions, shared_layer: LayerAttention | None = None) -> Tensor:
    """Frames (B, T, H, W, 3) 0…1 as the model draws them now.

    Args:
        shared_layer: as `pipeline.sample` takes it.
    """
    vae, transformer = context.model.vae, context.model.transformer
    noise = data.randn(torch.Generator(context.device).manual_seed(0), *conditions.image.shape)
    settings = {"scheduler": "ddim", "steps": SAMPLE_STEPS, "shared_layer": shared_layer}
    with evaluating(vae, transformer), context.autocast():
        return decode(vae, sample(transformer, noise, conditions, Guidance(SAMPLE_GUIDANCE), **settings))


def five_frames(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) → five of them, first and last included, (B, 5, H, W, 3)."""
    return frames[:, torch.linspace(0, frames.shape[1] - 1, 5).round().long().tolist()]
