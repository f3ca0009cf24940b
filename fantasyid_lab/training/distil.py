"""Stage distil: a LoRA with which the model needs fewer steps, and no guidance.

Guided progressive distillation (Salimans & Ho 2022, Meng et al. 2023) in one go: from noised latents one step of the
student, the model with the LoRA, shall lead where `substeps` guided steps of the model alone lead.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fantasyid_core.errors import TrainingError
from fantasyid_core.fusion.identity import BRANCHES
from fantasyid_core.sampling.pipeline import Conditions
from fantasyid_core.sampling.schedule import TRAIN_STEPS, guide, timesteps

from ..lora import LoRA
from . import data
from .base import generate
from .diffusion import weighted_mse
from .identity import IdentityObjective, IdentityStage
from .identity_batch import Reference
from .options import DistilOptions
from .stage import Batch, Context, evaluating

LOOKED_AT = 16  # validation clips


@dataclass(frozen=True, eq=False)
class DistilBatch(Batch):
    """What the objective takes.

    Attributes:
        noisy, image, target: (B, t, 16, h, w) noisy latents, image latents, and the velocity that leads where the
            teacher's steps lead.
        face_mask: (B, t, h, w) 0…1; text: (B, L, D) embeddings; timestep: (B,) 0…999.
        reference: of the people, without `first_frame`.
    """

    noisy: Tensor
    image: Tensor
    target: Tensor
    face_mask: Tensor
    text: Tensor
    timestep: Tensor
    reference: Reference


class DistilObjective(IdentityObjective):
    """The student's velocity against the teacher's."""

    def forward(self, batch: DistilBatch) -> dict[str, Tensor]:
        tokens = self.identity_tokens(batch.reference)
        predicted = self.velocity(batch.noisy, batch.image, batch.text, batch.timestep, tokens)
        return {"loss": weighted_mse(predicted - batch.target, batch.face_mask, self.options.face_weight)}


class DistilStage(IdentityStage):
    """See the module. Clips and references are those of stage identity."""

    objective_class = DistilObjective

    def __init__(self, context: Context):
        options, config = context.settings.options, context.model.config
        _check(options)
        branches = config.get("identity_branches", BRANCHES)
        options = replace(  # as the model was trained
            options,
            first_frame=bool(config.get("first_frame_condition", True)),
            **{f"branch_{name}": name in branches for name in BRANCHES},
        )
        super().__init__(replace(context, settings=replace(context.settings, options=options)))
        noising, device = self.objective.noising, context.device
        self.nodes = torch.tensor(timesteps(options.steps * options.substeps), device=device)
        clean = torch.ones(1, device=device)  # after the last step
        self.signal = torch.cat([noising.signal[self.nodes], clean])
        self.noise = torch.cat([noising.noise[self.nodes], 0 * clean])

    def _unfreeze_transformer(self) -> None:
        """The transformer stays as it is; what is trained is the LoRA."""
        self.objective.lora = LoRA(self.context.model.transformer, self.options.rank, self.settings.seed)

    def batch(self, step: int, generator: torch.Generator) -> DistilBatch:
        with torch.no_grad():
            clips = self.source.batch(step, self.settings.batch, generator)
            reference, image = self.condition(clips)
            reference = self._with_acting(reference, clips, generator)
            count = len(clips.latents)
            places = (torch.arange(count, device=generator.device) + data.rand(generator, count)) / count
            student_step = (places * self.options.steps).long()
            noise = data.randn(generator, *clips.latents.shape)
            return self._taught(clips.latents, clips.face_mask, clips.text, reference, image, noise, student_step)

    def _taught(
        self,
        latents: Tensor,
        face_mask: Tensor,
        text: Tensor,
        reference: Reference,
        image: Tensor,
        noise: Tensor,
        student_step: Tensor,
    ) -> DistilBatch:
        """A batch at steps (B,), 0…steps − 1, of the student's run."""
        first = student_step * self.options.substeps
        a, b = (self._at(values, first, latents) for values in (self.signal, self.noise))
        noisy = a * latents + b * noise
        with self.objective.lora.off(), self.context.autocast():
            tokens = self.objective.identity_tokens(reference)
            reached = noisy
            for i in range(self.options.substeps):
                velocity = self._guided_velocity(reached, image, text, first + i, tokens)
                reached = self._step(reached, velocity, first + i)
        last_a, last_b = (
            self._at(values, first + self.options.substeps, latents) for values in (self.signal, self.noise)
        )
        # One DDIM step with velocity v leads to (a a' + b b') x + (a b' − b a') v.
        target = (reached - (a * last_a + b * last_b) * noisy) / (a * last_b - b * last_a)
        return DistilBatch(noisy, image, target, face_mask, text, self.nodes[first], reference)

    def _guided_velocity(self, noisy: Tensor, image: Tensor, text: Tensor, node: Tensor, tokens: Tensor) -> Tensor:
        """The model's own, with guidance, at nodes (B,) of its run."""
        empty = self._validation()[0].empty_text[:, : text.shape[1]].to(text).expand(len(text), -1, -1)
        present = torch.ones(2, len(text), device=text.device)
        present[0] = 0.0 if self.options.guide_identity else 1.0
        both = (torch.cat([x, x]) for x in (noisy, image))
        timestep = self.nodes[node].repeat(2)
        predicted = self.objective.velocity(
            *both, torch.cat([empty, text]), timestep, torch.cat([tokens, tokens]), present.flatten()
        )
        return guide(*predicted.float().chunk(2), self.options.guidance)

    def _step(self, noisy: Tensor, velocity: Tensor, node: Tensor) -> Tensor:
        """One DDIM step from nodes (B,) of the model's run."""
        a, b, last_a, last_b = (
            self._at(values, place, noisy) for place in (node, node + 1) for values in (self.signal, self.noise)
        )
        clean, noise = a * noisy - b * velocity, b * noisy + a * velocity
        return last_a * clean + last_b * noise

    @staticmethod
    def _at(values: Tensor, node: Tensor, like: Tensor) -> Tensor:
        return values[node].view(-1, *[1] * (like.ndim - 1))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses by the student's step, and the mean of what they are without the LoRA."""
        numbers = {f"loss_of_step_{i + 1}": self._loss_of(i) for i in range(self.options.steps)}
        with self.objective.lora.off():
            before = sum(self._loss_of(i) for i in range(self.options.steps)) / self.options.steps
        return numbers | {"loss": sum(numbers.values()) / len(numbers), "loss_without_lora": before}

    def _loss_of(self, student_step: int) -> float:
        """Of clips that are looked at, always with the same noise."""
        clips, reference, image = self._validation()
        rows = slice(0, LOOKED_AT)
        latents = clips.latents[rows]
        noise = data.randn(torch.Generator(self.context.device).manual_seed(student_step), *latents.shape)
        step = torch.full((len(latents),), student_step, device=self.context.device)
        some = reference.map(lambda x: x[rows])
        batch = self._taught(latents, clips.face_mask[rows], clips.text[rows], some, image[rows], noise, step)
        with evaluating(self.objective), self.context.autocast():
            return float(self.objective(batch)["loss"])

    def _generate(self, conditions: Conditions) -> Tensor:
        return generate(self.context, conditions, self.objective.shared_layer, self.options.steps, 1.0)

    def export(self) -> None:
        """The LoRA beside the model's folder, which stays as it is."""
        about = {"steps": f"{self.options.steps}", "guidance": "1", "scheduler": "ddim"}
        name = f"{self.context.name}-{self.options.steps}-steps.safetensors"
        self.objective.lora.save(self.context.out / name, about)

    def muon_parameters(self) -> list[nn.Parameter]:
        return []

    def lr_mults(self) -> dict[nn.Module, float]:
        return {}

    def compile(self) -> list[nn.Module]:
        return []


def _check(options: DistilOptions) -> None:
    teacher = options.steps * options.substeps
    if not (options.steps >= 1 and options.substeps >= 1 and teacher <= TRAIN_STEPS and options.rank >= 1):
        raise TrainingError(
            f"{options.steps} steps of {options.substeps} substeps and a LoRA of rank {options.rank} were asked for; "
            f"each must be at least 1, and steps × substeps at most {TRAIN_STEPS}. 8 steps of 2 and rank 32 are usual."
        )
