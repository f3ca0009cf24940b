"""Ways of computing the same videos, exact or faster: what FantasyID Faster switches in ComfyUI, by name."""

from dataclasses import dataclass

from fantasyid_core.dit.step_cache import CacheSettings
from fantasyid_core.errors import FantasyIDError


@dataclass(frozen=True)
class Mode:
    """How the video transformer is computed.

    Attributes:
        name: as the command is given it, such as "cache=0.1+fp8".
        cache: when steps are skipped; None: never.
        fp8: matmuls with 8-bit operands.
    """

    name: str = "exact"
    cache: CacheSettings | None = None
    fp8: bool = False


EXACT = Mode()


def parse(text: str) -> tuple[Mode, ...]:
    """Modes from a list such as "exact,cache=0.1,fp8,cache=0.1+fp8"; the exact one comes first, named or not.

    Raises:
        FantasyIDError: a switch that does not exist.
        SamplingError: a threshold out of range.
    """
    modes = [_mode(name.strip()) for name in text.split(",")]
    return (EXACT, *(mode for mode in modes if mode != EXACT))


def _mode(name: str) -> Mode:
    cache, fp8 = None, False
    for switch in name.split("+"):
        kind, _, value = switch.partition("=")
        try:
            if kind == "cache":
                cache = CacheSettings(*map(float, value.split("-"))) if value else CacheSettings()
                continue
        except (ValueError, TypeError) as error:
            raise FantasyIDError(
                f"'{switch}' is no step cache; expected cache=THRESHOLD or cache=THRESHOLD-START-END."
            ) from error
        if switch == "fp8":
            fp8 = True
        elif switch != "exact":
            raise FantasyIDError(
                f"There is no mode '{switch}'; expected exact, cache=THRESHOLD, fp8, or some with '+'."
            )
    return Mode(name, cache, fp8)
