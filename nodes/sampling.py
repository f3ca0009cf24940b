"""The released recipe in one node, and its timesteps for the host's custom samplers."""

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import latent_preview
import node_helpers
import torch
from comfy_api.latest import io

from ..fantasyid_core.dit.injection import Injection
from ..fantasyid_core.errors import SamplingError
from ..fantasyid_core.optional_import import require_diffusers
from ..fantasyid_core.sampling.presets import Preset, describe, preset_of
from ..fantasyid_core.sampling.schedule import GUIDANCE, SCHEDULERS, STEPS, TRAIN_STEPS, last_steps, timesteps
from ..fantasyid_core.video.latents import squeeze_to_frame
from .host import notes
from .host.base import FantasyIDNode, listed
from .host.sockets import Identity
from .injection import guide_identity_input, preset_input
from .video import AS_SET, by_model, empty_latent, latents_to_redraw, own_size, settings_input, size_inputs, unused


class FantasyIDSampler(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSampler",
            display_name="FantasyID Sampler",
            **listed(
                "5 video",
                "photo to video",
                "image to video",
                "talking head",
                "identity",
                "face id",
                "portrait video",
                "consistent character",
                essentials="Video Generation",
            ),
            description=(
                "The released recipe in one node: CogVideoX's DPM or DDIM schedule, guidance, and the reference face "
                "as first latent frame, if the model was trained so. Takes a plain MODEL, which then follows the "
                "identity at strength 1, or one of Apply FantasyID, whose settings then hold. Prompts that passed "
                "FantasyID Image Condition likewise keep its first frame."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From FantasyID Load Model, or from Apply FantasyID."),
                Identity.Input(
                    "identity", tooltip="Who is in the video; its reference crop is the first latent frame."
                ),
                io.Vae.Input("vae", tooltip="The VAE of FantasyID Load Model; it encodes the reference crop."),
                io.Conditioning.Input("positive", tooltip="The encoded prompt, from FantasyID Text Encode."),
                io.Conditioning.Input("negative", tooltip="What to avoid; an empty prompt as released."),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed draws the same noise, on CPU and GPU.",
                ),
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=TRAIN_STEPS,
                    tooltip="The published model: 50 as released, 30 are often enough. FantasyID-nano: 20.",
                ),
                io.Float.Input(
                    "guidance",
                    default=GUIDANCE,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How closely the video follows the prompt; 1 is off. The published model: 6 as released. "
                    "FantasyID-nano: 4, with guide_identity on.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(SCHEDULERS),
                    default=SCHEDULERS[0],
                    tooltip="dpm: as released. ddim: draws no noise on the way, equals KSampler's ddim, and is what "
                    "FantasyID-nano was measured with.",
                ),
                *size_inputs(),
                io.Noise.Input(
                    "noise", optional=True, tooltip="From RandomNoise: replaces the first noise that seed would give."
                ),
                guide_identity_input(),
                settings_input("size, steps, guidance, scheduler and guide_identity"),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="A video to draw again, from VAE Encode, of the size and length that are set here: such as "
                    "the clip of FantasyID Face Track. Without it the video begins with noise alone.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of the latents is drawn again: that share of the steps, the last, is done. 0.4 "
                    "gives a face another identity and keeps how it moves; 1 keeps nothing.",
                ),
                preset_input("guidance and guide_identity, and without Apply FantasyID how the identity acts"),
            ],
            outputs=[io.Latent.Output(tooltip="The video's latents, for VAE Decode.")],
        )

    @classmethod
    def run(
        cls,
        model,
        identity,
        vae,
        positive,
        negative,
        seed,
        steps,
        guidance,
        scheduler,
        width,
        height,
        frames,
        noise=None,
        guide_identity: bool = False,
        settings: str = AS_SET,
        latents: dict | None = None,
        denoise: float = 1.0,
        preset: str = AS_SET,
    ) -> io.NodeOutput:
        require_diffusers("The FantasyID Sampler")
        ready = prepare(
            model,
            identity,
            vae,
            positive,
            negative,
            seed,
            {"width": width, "height": height, "frames": frames},
            {"steps": steps, "guidance": guidance, "scheduler": scheduler, "guide_identity": guide_identity},
            noise=noise,
            settings=settings,
            latents=latents,
            denoise=denoise,
            preset=preset,
        )
        return io.NodeOutput({"samples": ready.sample()})


@dataclass(frozen=True, eq=False)
class Ready:
    """A video that only has to be sampled.

    Attributes:
        guider, noise, latent, sampler, sigmas, seed: as ComfyUI takes them; noise and latent (1, 16, T, h, w).
        steps: how many there are to do; 0 where the latents are left as they are.
    """

    guider: comfy.samplers.CFGGuider
    noise: torch.Tensor
    latent: torch.Tensor
    sampler: Any
    sigmas: torch.Tensor
    seed: int
    steps: int

    def sample(self, until: int | None = None) -> torch.Tensor:
        """Latents (1, 16, T, h, w): finished, or as they are foreseen after `until` steps; the next call goes on."""
        if not self.steps:
            return self.latent
        self.sampler.until = until
        samples = self.guider.sample(
            self.noise,
            self.latent,
            self.sampler,
            self.sigmas,
            callback=latent_preview.prepare_callback(self.guider.model_patcher, self.steps),
            seed=self.seed,
        )
        return samples.to(comfy.model_management.intermediate_device())


def prepare(
    model,
    identity,
    vae,
    positive,
    negative,
    seed: int,
    size: dict[str, int],
    sampling: dict[str, Any],
    *,
    noise=None,
    settings: str = AS_SET,
    latents: dict | None = None,
    denoise: float = 1.0,
    preset: str = AS_SET,
) -> Ready:
    """Everything that the sampler does before its first step, from its inputs.

    Args:
        size: width, height and frames.
        sampling: steps, guidance, scheduler and guide_identity.

    Raises:
        SamplingError, IdentityError: they do not suit the model or each other.
    """
    from .host.options import add_injection, check_size, defaults_of, injections_of, transformer_of
    from .host.sampler import ReleaseSampler

    if by_model(settings):
        own = vars(defaults_of(model))
        width, height, frames = own_size(model, size["frames"])
        used = own | {"width": width, "height": height, "frames": frames}
        ignored = unused(size | sampling, used)
        size, sampling = ({name: used[name] for name in widgets} for widgets in (size, sampling))
        notes.show(
            f"{width} × {height} pixels, {frames} frames, {own['steps']} steps of {own['scheduler']}, guidance "
            f"{own['guidance']:g}.{ignored}"
        )
    steps = sampling["steps"]
    guidance, acts = _by_preset(preset, model, sampling["guidance"], sampling["guide_identity"])
    if not math.isfinite(guidance):
        raise SamplingError(f"Guidance must be a finite number; got {guidance}. 6 is as released. Set it to that.")
    latent = empty_latent(**size)
    zeros = latent["samples"]
    check_size(model.model_options, zeros, transformer_of(model))
    if latents is None and denoise != 1:
        raise SamplingError(f"denoise {denoise:g} needs latents to draw again: connect 'latents', or set denoise to 1.")
    start = None if latents is None else latents_to_redraw(latents, zeros)
    if not injections_of(model):
        injection = Injection(
            identity.tokens,
            acts.strength,
            acts.start,
            acts.end,
            guide_identity=acts.guide_identity,
            frame_tokens=identity.frame_tokens,
        )
        model = add_injection(model, injection)
    generator = torch.Generator().manual_seed(seed)
    pixels = squeeze_to_frame(identity.image, size["height"], size["width"])
    positive, negative = _with_first_frame(model, vae, pixels, positive, negative, generator)
    if noise is None:
        first_noise = torch.randn(zeros.transpose(1, 2).shape, generator=generator).transpose(1, 2)
    else:
        first_noise = noise.generate_noise(latent)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(guidance)
    done = last_steps(steps, denoise) if denoise else 0
    return Ready(
        guider,
        first_noise,
        zeros if start is None else start,
        ReleaseSampler(sampling["scheduler"], steps, generator, None if start is None else denoise),
        trailing_sigmas(model, steps)[-done - 1 :],
        seed,
        done,
    )


def _by_preset(name: str, model, guidance: float, guide_identity: bool) -> tuple[float, Preset]:
    """Guidance, and how an identity acts that the MODEL does not bring; said under the node where a preset sets them.

    Raises:
        SamplingError: there is no such preset.
    """
    from .host.options import defaults_of, injections_of

    preset = preset_of(name)
    if preset is None:
        return guidance, Preset(guide_identity=guide_identity)
    widgets: dict[str, Any] = {"guidance": guidance}
    guidance = defaults_of(model).guidance * preset.guidance
    used: dict[str, Any] = {"guidance": guidance}
    said = "how the identity acts was set before, by Apply FantasyID"
    if not injections_of(model):
        said = describe(preset)
        widgets["guide_identity"], used["guide_identity"] = guide_identity, preset.guide_identity
    notes.show(f"{name}: guidance {guidance:g}; {said}.{unused(widgets, used, 'preset')}")
    return guidance, preset


def _with_first_frame(model, vae, pixels: torch.Tensor, positive, negative, generator: torch.Generator) -> tuple:
    """Positive and negative conditioning with the reference as first frame, where the model was trained with it and
    none is given; the branch without the identity goes without the frame.
    """
    from .host.options import injections_of, transformer_of
    from .host.vae import encode_sample

    given = any("concat_latent_image" in values for _, values in [*positive, *negative])
    if given or not transformer_of(model).config.first_frame_condition:
        return positive, negative
    first = {"concat_latent_image": encode_sample(vae, pixels, generator)}
    positive = node_helpers.conditioning_set_values(positive, first)
    if not any(injection.guide_identity for injection in injections_of(model)):
        negative = node_helpers.conditioning_set_values(negative, first)
    return positive, negative


class FantasyIDSigmas(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSigmas",
            display_name="FantasyID Sigmas",
            **listed("5 video", "scheduler", "timesteps", "trailing"),
            description=(
                "The release's trailing timesteps as SIGMAS, for SamplerCustomAdvanced. KSampler's scheduler 'simple' "
                "is almost the same; 'normal' and 'ddim_uniform' are not."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The FantasyID MODEL that will be sampled."),
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=TRAIN_STEPS,
                    tooltip="Denoising steps. The published model: 50 as released; FantasyID-nano: 20.",
                ),
                settings_input("steps"),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def run(cls, model, steps: int, settings: str = AS_SET) -> io.NodeOutput:
        require_diffusers("FantasyID Sigmas")
        from .host.options import defaults_of

        own = defaults_of(model)
        if by_model(settings):
            ignored = unused({"steps": steps}, vars(own))
            steps = own.steps
            notes.show(f"{steps} steps.{ignored}")
        return io.NodeOutput(trailing_sigmas(model, steps))


def trailing_sigmas(model, steps: int) -> torch.Tensor:
    """(steps + 1,) sigmas of the release's timesteps, ending in 0."""
    known = model.get_model_object("model_sampling").sigmas
    return torch.cat([known[timesteps(steps)].cpu(), torch.zeros(1)])


NODES = [FantasyIDSampler, FantasyIDSigmas]
