"""Stage distil: where the student is led, and the LoRA that it leaves."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator

from fantasyid_core.errors import TrainingError, WeightsError
from fantasyid_core.io import weights
from fantasyid_lab import lora
from fantasyid_lab.training import loop
from fantasyid_lab.training.distil import DistilStage
from fantasyid_lab.training.stage import Context


@pytest.fixture
def make_stage(context: Callable[..., Context]) -> Callable[..., DistilStage]:
    """Makes the stage with these options."""

    def make(**options) -> DistilStage:
        return DistilStage(context("distil", steps=2, ema=0.0, learning_rate=1e-2, options={"rank": 4} | options))

    return make


def test_a_teacher_who_knows_the_video_leads_the_student_to_it(make_stage: Callable[..., DistilStage]):
    """Its steps end on the straight way from noise to video, wherever they begin: one velocity leads there."""
    stage = make_stage(steps=4, substeps=3)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 3, 16, 4, 4, generator=generator)
    student_step = torch.tensor([0, 1, 2, 3])

    def exact(noisy, image, text, node, tokens):
        a, b = (stage._at(values, node, latents) for values in (stage.signal, stage.noise))
        torch.testing.assert_close(noisy, a * latents + b * noise, atol=1e-4, rtol=1e-4)
        return a * noise - b * latents

    with torch.no_grad():
        reference = stage.batch(0, generator).reference
        stage._guided_velocity = exact
        batch = stage._taught(latents, latents[:, :, 0], latents, reference, latents, noise, student_step)
    assert batch.timestep.tolist() == [999, 749, 499, 249]
    a, b = (stage._at(values, 3 * student_step, latents) for values in (stage.signal, stage.noise))
    torch.testing.assert_close(batch.target, a * noise - b * latents, atol=1e-3, rtol=1e-3)


def test_one_unguided_step_of_the_model_is_what_the_student_does_already(make_stage: Callable[..., DistilStage]):
    itself = make_stage(substeps=1, guidance=1.0)
    assert itself.objective(itself.batch(0, itself.context.generator(0)))["loss"] < 1e-8
    guided = make_stage(substeps=1)
    assert guided.objective(guided.batch(0, guided.context.generator(0)))["loss"] > 1e-4


def test_the_lora_is_all_that_is_trained_and_gives_the_student(make_stage: Callable[..., DistilStage]):
    stage = make_stage(steps=3, acting_share=0.5)
    alone = {name: x.clone() for name, x in stage.context.model.transformer.state_dict().items()}
    batch = stage.batch(0, stage.context.generator(0))
    numbers = loop.train(stage, Accelerator(cpu=True), resume=False)
    assert numbers.keys() == {"loss_of_step_1", "loss_of_step_2", "loss_of_step_3", "loss", "loss_without_lora"}
    assert numbers["loss"] != numbers["loss_without_lora"]
    transformer, path = stage.context.model.transformer, stage.context.out / "FantasyID-nano-3-steps.safetensors"
    assert all(torch.equal(x, alone[name]) for name, x in transformer.state_dict().items())
    names = {name.removeprefix("transformer.") for name in weights.read(path)}
    assert "transformer_blocks.0.attn1.to_out.0.lora_A.weight" in names
    assert "layer_attention.1.to_kv.lora_B.weight" in names
    assert len(names) == 2 * 2 * (6 + 3)

    def predicted() -> torch.Tensor:
        with torch.no_grad():
            tokens = stage.objective.identity_tokens(batch.reference)
            return stage.objective.velocity(batch.noisy, batch.image, batch.text, batch.timestep, tokens)

    student = predicted()
    with stage.objective.lora.off():
        model = predicted()
        lora.merge(transformer, path)
        merged = predicted()
    torch.testing.assert_close(merged, student, atol=1e-3, rtol=1e-3)
    assert (student - model).abs().max() > 1e-2


def test_misfits_are_refused(make_stage: Callable[..., DistilStage], tmp_path):
    with pytest.raises(TrainingError, match="0 steps of 2 substeps"):
        make_stage(steps=0)
    stage = make_stage()
    stage.export()
    path = stage.context.out / "FantasyID-nano-8-steps.safetensors"
    with pytest.raises(WeightsError, match="no LoRA of this transformer"):
        lora.merge(torch.nn.Linear(2, 2), path)
