"""What a model is sampled with unless the artist says otherwise: size, steps and guidance that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..video.latents import FRAMES, HEIGHT, SPACE_SCALE, WIDTH
from .schedule import GUIDANCE, SCHEDULERS, STEPS

KEY = "sampling_defaults"  # of a transformer's config.json; a model without it is sampled as released


@dataclass(frozen=True)
class SamplingDefaults:
    """A model's own settings.

    Attributes:
        width, height: px; frames: at most what it was trained on.
        steps, guidance, scheduler: as `schedule.denoise` takes them.
        guide_identity: whether guidance leads to the identity too, see `injection.Injection.guide_identity`.
    """

    width: int = WIDTH
    height: int = HEIGHT
    frames: int = FRAMES
    steps: int = STEPS
    guidance: float = GUIDANCE
    scheduler: str = SCHEDULERS[0]
    guide_identity: bool = False


AS_RELEASED = SamplingDefaults()


def defaults_of(config: Mapping[str, Any]) -> SamplingDefaults:
    """The defaults that a transformer's `config.json` names.

    Raises:
        ValueError, TypeError: it names something else, or values that cannot be.
    """
    sizes = {
        "width": int(config.get("sample_width", WIDTH // SPACE_SCALE)) * SPACE_SCALE,
        "height": int(config.get("sample_height", HEIGHT // SPACE_SCALE)) * SPACE_SCALE,
        "frames": int(config.get("sample_frames", FRAMES)),
    }
    own = SamplingDefaults(**sizes, **config.get(KEY, {}))
    if own.steps < 1 or own.guidance < 1 or own.scheduler not in SCHEDULERS:
        raise ValueError(f"{KEY} has {own.steps} steps, guidance {own.guidance} and scheduler '{own.scheduler}'")
    return own
