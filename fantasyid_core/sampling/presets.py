"""What artists set by hand for one purpose, under a name."""

from dataclasses import dataclass

from ..errors import SamplingError

AS_SET = "as set here"


@dataclass(frozen=True)
class Preset:
    """Settings of an identity and of the guidance beside it.

    Attributes:
        strength, start, end, guide_identity: see `injection.Injection`.
        guidance: factor on the guidance that the model is made for.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guide_identity: bool = False
    guidance: float = 1.0


PRESETS = {
    "as released": Preset(),
    "insist on the person": Preset(guide_identity=True),
    "free motion": Preset(start=0.15, guide_identity=True),
    "close to the photo": Preset(strength=1.2, guide_identity=True, guidance=0.75),
}
CHOICES = (AS_SET, *PRESETS)


def preset_of(name: str) -> Preset | None:
    """The preset of this name; None for `AS_SET`.

    Raises:
        SamplingError: there is none.
    """
    if name not in CHOICES:
        raise SamplingError(f"There is no preset '{name}'; choose one of: {', '.join(CHOICES)}.")
    return PRESETS.get(name)


def describe(preset: Preset) -> str:
    """What it does with an identity, in words for the artist."""
    whole = (preset.start, preset.end) == (0, 1)
    part = "the whole run" if whole else f"{preset.start:g} to {preset.end:g} of the run"
    return f"strength {preset.strength:g}, {part}, guide_identity {'on' if preset.guide_identity else 'off'}"
