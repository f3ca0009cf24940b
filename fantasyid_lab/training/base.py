"""Stage base: text to video without identity."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.injection import LayerAttention
from fantasyid_core.dit.transformer import RunBlock, run_as_is
from fantasyid_core.sampling.pipeline import Conditions, Guidance, sample

from .. import nano
from ..latents import decode
from . import data, pictures
from .captions import Captions
from .diffusion import FIXED_TIMESTEPS, Noising, Rotary, on_pictures, stratified_timesteps, weighted_mse
from .landmark_loss import LandmarkLoss
from .options import BaseOptions
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable
from .vae import encode_pools

SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 4.0


@dataclass(frozen=True, eq=False)
class BaseBatch(Batch):
    """Clips, or single frames of photos, with their captions.

    Attributes:
        latents: (B, t, 16, h, w); face_mask: (B, t, h, w) 0…1, where the face is in them.
        text: captions as ids (B, L), or their embeddings (B, L, D) where the text encoder is not trained.
        noise: (B, t, 16, h, w), standard normal; timestep: (B,), 0…999.
        landmarks: (B, T, 68, 2) in latents, for the landmark loss.
    """

    latents: Tensor
    face_mask: Tensor
    text: Tensor
    noise: Tensor
    timestep: Tensor
    landmarks: Tensor | None = None


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

    def forward(self, batch: BaseBatch) -> dict[str, Tensor]:
        latents, text = batch.latents, batch.text
        noisy, velocity = self.noising(latents, batch.noise, batch.timestep)
        text_embeddings = text if text.is_floating_point() else self.text(input_ids=text).last_hidden_state.float()
        model_input = torch.cat([noisy, torch.zeros_like(noisy)], 2)
        block_outputs: list[Tensor] = []
        run_block = self._run_block(block_outputs)
        predicted = self.transformer(
            model_input, text_embeddings, batch.timestep, image_rotary_emb=self.rotary(latents), run_block=run_block
        )
        loss = weighted_mse(predicted - velocity, batch.face_mask, self.options.face_weight)
        if self.landmark_loss is None or batch.landmarks is None:
            return {"loss": loss}
        patch = self.transformer.config.patch_size
        cells = (latents.shape[1], latents.shape[-2] // patch, latents.shape[-1] // patch)
        landmark_loss = self.landmark_loss(block_outputs[0], (batch.landmarks + 0.5) / patch - 0.5, cells)
        return {
            "loss": loss + self.options.landmark_weight * landmark_loss,
            "velocity": loss,
            "landmarks": landmark_loss,
        }

    def _run_block(self, block_outputs: list[Tensor]) -> RunBlock:
        """Runs a block as it is, and appends the hidden states after block `landmark_block`."""

        def run_block(index: int, block: nn.Module, *inputs: Any) -> tuple:
            hidden_states, encoder_hidden_states = run_as_is(index, block, *inputs)
            if index == self.options.landmark_block:
                block_outputs.append(hidden_states)
            return hidden_states, encoder_hidden_states

        return run_block


class BaseStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        model = context.model
        encode_pools(context)
        self.empty_ids = byte_tokens.encode_batch([""]).to(context.device)
        last = len(model.transformer.transformer_blocks) - 1
        options: BaseOptions = self.settings.options
        self.options = replace(options, landmark_block=min(options.landmark_block, last))
        text = trainable(model.text) if self.options.train_text else model.text.eval().requires_grad_(False)
        self.objective = BaseObjective(trainable(model.transformer), text, self.options, context.device)
        model.transformer.layer_attention.requires_grad_(False)
        self.captions = None if self.options.train_text else Captions(context.pool, context.embed_text)
        self.empty_text = None if self.options.train_text else context.embed_text(self.empty_ids)

    def batch(self, step: int, generator: torch.Generator) -> BaseBatch:
        pool, count = self.context.pool, self.settings.batch
        if pictures := on_pictures(step, self.options.pictures):
            count *= self.options.pictures_batch
        samples = pool.draw(count, generator, pictures)
        dropped = data.rand(generator, count, 1) < self.options.text_dropout
        if self.captions is None:
            text = torch.where(dropped, self.empty_ids, pool.caption[samples.captions].long())
        else:
            text = torch.where(dropped[..., None], self.empty_text, self.captions.of(samples.captions))
        return BaseBatch(
            latents=samples.latents,
            face_mask=samples.face_mask,
            text=text,
            noise=data.randn(generator, *samples.latents.shape),
            timestep=stratified_timesteps(count, generator),
            landmarks=(samples.landmarks + 0.5) / 8 - 0.5,
        )

    def muon_parameters(self) -> list[nn.Parameter]:
        return parameters_of(*self.context.model.transformer.transformer_blocks, self.context.model.text.encoder.block)

    def compile(self) -> list[nn.Module]:
        return list(self.context.model.transformer.transformer_blocks)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        pool = self.context.validation
        return losses_at_fixed_timesteps(self.context, self._loss, pool.latents[: min(64, pool.clips)])

    def _loss(self, rows: slice, noise: Tensor, timestep: Tensor) -> Tensor:
        pool = self.context.validation
        latents = pool.latents[rows].float()
        batch = BaseBatch(latents, pool.latent_face_mask[rows], pool.caption[rows].long(), noise, timestep)
        return self.objective(batch)["loss"]

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Six validation captions: five generated frames, the middle one of the true clip."""
        context, pool = self.context, self.context.validation
        rows = slice(0, min(6, pool.clips))
        text, empty_text = (context.embed_text(ids) for ids in (pool.caption[rows].long(), self.empty_ids))

        latents = pool.latents[rows]
        generated = generate(context, Conditions(text, empty_text, torch.zeros_like(latents, dtype=torch.float32)))
        truth = pool.frames[rows, pool.frames.shape[1] // 2][:, None].float() / 255
        return pictures.grid(torch.cat([five_frames(generated), truth], 1))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["transformer", "text_encoder"])


def losses_at_fixed_timesteps(
    context: Context, loss: Callable[[slice, Tensor, Tensor], Tensor], latents: Tensor
) -> dict[str, float]:
    """`loss(rows, noise, timestep)` of clips with these latents, at `FIXED_TIMESTEPS`, always with the same noise."""
    losses, count = {}, len(latents)
    with context.autocast():
        for timestep in FIXED_TIMESTEPS:
            total = 0.0
            for start in range(0, count, 32):
                rows = slice(start, min(start + 32, count))
                chunk = latents[rows]
                noise = data.randn(torch.Generator(context.device).manual_seed(start + timestep), *chunk.shape)
                timesteps = torch.full((len(chunk),), timestep, device=context.device)
                total = total + loss(rows, noise, timesteps) * len(chunk)
            losses[f"loss_at_{timestep}"] = float(total / count)
    return losses | {"loss": sum(losses.values()) / len(losses)}


@torch.no_grad()
def generate(
    context: Context,
    conditions: Conditions,
    shared_layer: LayerAttention | None = None,
    steps: int = SAMPLE_STEPS,
    guidance: float = SAMPLE_GUIDANCE,
) -> Tensor:
    """Frames (B, T, H, W, 3) 0…1 as the model draws them now.

    Args:
        shared_layer: as `pipeline.sample` takes it.
    """
    vae, transformer = context.model.vae, context.model.transformer
    noise = data.randn(torch.Generator(context.device).manual_seed(0), *conditions.image.shape)
    settings = {"scheduler": "ddim", "steps": steps, "shared_layer": shared_layer}
    with evaluating(vae, transformer), context.autocast():
        return decode(vae, sample(transformer, noise, conditions, Guidance(guidance), **settings))


def five_frames(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) → five of them, first and last included, (B, 5, H, W, 3)."""
    return frames[:, torch.linspace(0, frames.shape[1] - 1, 5).round().long().tolist()]
