"""Stage attributes: the attribute regressor of the evaluation, on rendered frames with their true labels."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fantasyid_core.meters import attribute_regressor, meters
from fantasyid_core.meters.attribute_regressor import AttributeTargets

from ..evaluation import adherence
from ..people.colours import COLOURS
from . import data
from .options import AttributeOptions
from .pool import Pool
from .stage import Batch, Context, Stage, evaluating, trainable


@dataclass(frozen=True, eq=False)
class AttributeBatch(Batch):
    """Frames (B, 3, H, W) 0…1 and what they show."""

    frames: Tensor
    targets: AttributeTargets


class AttributeObjective(nn.Module):
    """The attribute regressor's own losses."""

    def __init__(self, network: attribute_regressor.AttributeRegressor):
        super().__init__()
        self.network = network

    def forward(self, batch: AttributeBatch) -> dict[str, Tensor]:
        losses = attribute_regressor.losses(self.network(batch.frames), batch.targets)
        return {"loss": sum(losses.values()), **losses}


class AttributeStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        options: AttributeOptions = self.settings.options
        if options.start_from:
            network = attribute_regressor.load(Path(options.start_from))
        else:
            network = attribute_regressor.AttributeRegressor(len(COLOURS), widths=options.widths)
        self.network = trainable(network).to(context.device)
        self.objective = AttributeObjective(self.network)

    def batch(self, step: int, generator: torch.Generator) -> AttributeBatch:
        pool = self.context.pool
        rows = data.randint(generator, pool.clips, self.settings.batch)
        times = data.randint(generator, pool.frames.shape[1], self.settings.batch)
        frames, targets = labelled(pool, rows, times)
        return AttributeBatch(attribute_regressor.degrade(frames, generator), targets)

    def validate(self) -> dict[str, float]:
        pool = self.context.validation
        rows = torch.arange(min(64, pool.clips), device=pool.device).repeat_interleave(4)
        times = torch.linspace(0, pool.frames.shape[1] - 1, 4, device=pool.device).long().repeat(len(rows) // 4)
        frames, targets = labelled(pool, rows, times)
        with evaluating(self.network), self.context.autocast():
            reading = self.network(frames)
        off = (reading.landmarks - targets.landmarks).norm(dim=-1) * frames.shape[-1]
        pose = (reading.pose - targets.pose).abs().median(0).values.tolist()
        expression = (reading.expression - targets.expression).abs().mean()
        return {
            "landmarks_px": off.median().item(),
            **dict(zip(("yaw_deg", "pitch_deg", "roll_deg"), pose, strict=True)),
            "expression": expression.item(),
            "shirt": (reading.shirt.argmax(1) == targets.shirt).float().mean().item(),
            "background": (reading.background.argmax(1) == targets.background).float().mean().item(),
        }

    def export(self) -> None:
        pool = self.context.validation
        with evaluating(self.network):
            read = [
                attribute_regressor.read_attributes(self.network, frames.float() / 255).expression
                for frames in pool.frames[: pool.clips]
            ]
        self.network.thresholds = adherence.thresholds(read, list(pool.expression[: pool.clips]))
        landmarks = pool.landmarks[: pool.clips, :, :5].flatten(0, 1).cpu()
        self.network.framing = meters.framing(landmarks, pool.frames.shape[2])
        self.network.save(self.context.model_folder / "judge")


def labelled(pool: Pool, rows: Tensor, times: Tensor) -> tuple[Tensor, AttributeTargets]:
    """Frames `times` of clips `rows`, (B, 3, H, W) 0…1, and what they show."""
    frames = pool.frames[rows, times].movedim(-1, 1).float() / 255
    return frames, AttributeTargets(
        landmarks=attribute_regressor.to_unit(pool.landmarks[rows, times], pool.frames.shape[2]),
        pose=pool.pose[rows, times],
        expression=pool.expression[rows, times],
        shirt=pool.shirt[rows],
        background=pool.background[rows],
    )
