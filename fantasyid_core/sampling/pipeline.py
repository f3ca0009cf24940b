"""The sampling recipe: noise and first frame → guidance, identity injected → scheduler → frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dit.injection import Injector, LayerAttention, SampleInjector
from ..dit.kernels import Rotary
from ..dit.step_cache import StepCache
from ..video.autoencoder import Autoencoder
from ..video.latents import first_frame_condition
from .schedule import GUIDANCE, RELEASE_SCHEDULE, STEPS, TRAIN_STEPS, Callback, denoise, guide

if TYPE_CHECKING:
    from ..dit.transformer import FantasyIDTransformer, RunBlock


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance.

    Attributes:
        scale: 1 is off.
        guide_identity: whether the unconditional branch goes without the identity, its image latents included, so that
            guidance leads to the person as it leads to the prompt; in the release both branches have it.
    """

    scale: float = GUIDANCE
    guide_identity: bool = False

    @property
    def is_on(self) -> bool:
        """Whether there is an unconditional branch."""
        return self.scale != 1


@dataclass(frozen=True, eq=False)
class Conditions:
    """What B videos are made from.

    Attributes:
        text: (B, L, D) embeddings; the transformer computes in their dtype.
        negative_text: (B or 1, L, D), of the unconditional branch.
        image: (B, T, C, h, w) image latents, zeros for none.
        tokens: (B, N, K) identity tokens; None injects nothing.
        strength: (B,) factor on what the injection adds; 0 leaves the identity out, of the image latents too.
    """

    text: Tensor
    negative_text: Tensor
    image: Tensor
    tokens: Tensor | None = None
    strength: Tensor | None = None

    def branches(self, guidance: Guidance) -> "Conditions":
        """The conditions of one call of the transformer: with guidance 2 B, the unconditional branch first."""
        text, image, tokens, strength = self.text, self.image, self.tokens, self.strength
        if guidance.is_on:
            text = torch.cat([self.negative_text.expand(len(text), -1, -1), text])
            image = torch.cat([image, image])
            tokens = tokens if tokens is None else torch.cat([tokens, tokens])
            if guidance.guide_identity and strength is None:
                strength = image.new_ones(len(self.text))
            if strength is not None:
                strength = torch.cat([0.0 * strength if guidance.guide_identity else strength, strength])
        if strength is not None:
            image = image.masked_fill((strength == 0).view(-1, 1, 1, 1, 1), 0)
        return Conditions(text, self.negative_text, image, tokens, strength)


@torch.no_grad()
def sample(
    transformer: "FantasyIDTransformer",
    noise: Tensor,
    conditions: Conditions,
    guidance: Guidance,
    *,
    scheduler: str = "dpm",
    steps: int = STEPS,
    generator: torch.Generator | None = None,
    schedule: Mapping = RELEASE_SCHEDULE,
    image_rotary_emb: Rotary | None = None,
    shared_layer: LayerAttention | None = None,
    injector: Injector | None = None,
    run_block: "RunBlock | None" = None,
    cache: StepCache | None = None,
    start: Tensor | None = None,
    denoising_strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Sample B videos in one batch.

    Args:
        noise: (B, T, C, h, w), standard normal, on the transformer's device.
        scheduler, steps, generator, schedule: as `denoise` takes them.
        image_rotary_emb: by default that of the latents' size.
        shared_layer: the injection layer to use for all blocks, if there is one.
        injector: injects in place of the conditions' tokens, into the batch that `Conditions.branches` makes.
        run_block, cache: as the transformer takes them.
        start, denoising_strength: latents (B, T, C, h, w) to draw again, and how much of them, as `denoise` takes them.
        callback: called after each step, as `denoise` does.

    Returns:
        Latents (B, T, C, h, w) float32, scaled as the transformer sees them.
    """
    image_rotary_emb = image_rotary_emb or transformer.rotary_embedding(
        noise.shape[1], noise.shape[-2], noise.shape[-1], noise.device
    )
    batch = conditions.branches(guidance)
    if injector is None and batch.tokens is not None:
        injector = SampleInjector(batch.tokens, batch.strength, shared_layer)

    def velocity(latents: Tensor, timestep: int) -> Tensor:
        noisy = torch.cat([latents, latents]) if guidance.is_on else latents
        predicted = transformer(
            torch.cat([noisy, batch.image], 2).to(batch.text.dtype),
            batch.text,
            torch.full((len(noisy),), timestep, device=noisy.device),
            image_rotary_emb=image_rotary_emb,
            injector=injector,
            progress=1 - timestep / (TRAIN_STEPS - 1),
            run_block=run_block,
            cache=cache,
        ).float()
        if not guidance.is_on:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        return guide(unconditional, conditional, guidance.scale)

    return denoise(
        velocity,
        noise,
        scheduler=scheduler,
        steps=steps,
        generator=generator,
        schedule=schedule,
        start=start,
        denoising_strength=denoising_strength,
        callback=callback,
    )


@torch.no_grad()
def encode_first_frame(autoencoder: Autoencoder, pixels: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Image latents of a reference, drawn from the encoder's distribution as released.

    Args:
        pixels: (1, 3, 1, H, W) in −1…1.
        frames: T, of the latents.

    Returns:
        (1, T, C, h, w) float32, the reference first, then zeros, scaled as the transformer sees them.
    """
    drawn = autoencoder.encode(pixels).sample(generator)
    return first_frame_condition(drawn.float() * autoencoder.config.scaling_factor, frames).transpose(1, 2)


@torch.no_grad()
def decode_frames(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Latents (B, T, C, h, w), as the transformer sees them → frames (B, 4 T − 3, H, W, 3) uint8 on the CPU.

    One video at a time, in the autoencoder's dtype on its device.
    """
    like = next(autoencoder.parameters())
    videos = []
    for one in latents.transpose(1, 2).split(1):
        pixels = autoencoder.decode((one / autoencoder.config.scaling_factor).to(like))
        videos.append((pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(videos).permute(0, 2, 3, 4, 1)
