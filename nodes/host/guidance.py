"""Which of a guider's predictions go without an identity that guidance leads to.

A guider names its conditionings. Their place in a batch tells nothing: 1 is the negative prompt of CFGGuider and the
second prompt of DualCFGGuider. So each conditioning is marked by its name, and the mark travels with it to the model.
"""

from collections.abc import Iterable, Mapping

import comfy.conds
import comfy.model_patcher
import comfy.samplers

from ...fantasyid_core.dit.injection import Injection
from ...fantasyid_core.errors import SamplingError

MARK = "fantasyid_unconditional"
# Guidance leads towards these, …
TOWARDS = frozenset({"positive", "middle"})
# … and away from these: the negative prompt of every guider, and the empty one that PerpNegGuider starts from.
AWAY = frozenset({"negative", "empty_negative_prompt"})


class Unconditional(comfy.conds.CONDConstant):
    """Whether a conditioning is one that guidance leads away from; batched, a tuple of them."""

    def can_concat(self, other: "Unconditional") -> bool:
        return True

    def concat(self, others: Iterable["Unconditional"]) -> tuple[bool, ...]:
        return (self.cond, *(other.cond for other in others))


def mark(guider: comfy.samplers.CFGGuider, injections: Iterable[Injection]) -> None:
    """Mark the conditionings of a guider that is about to sample.

    Raises:
        SamplingError: guidance is to lead to an identity, and the guider has a conditioning of unknown meaning.
    """
    unknown = sorted(guider.conds.keys() - TOWARDS - AWAY)
    if unknown and any(injection.guide_identity for injection in injections):
        raise SamplingError(
            f"guide_identity is on, but the guider {type(guider).__name__} has a conditioning '{unknown[0]}' of which "
            "FantasyID does not know whether guidance leads towards it or away from it. Switch guide_identity off in "
            "Apply FantasyID, or use CFGGuider, DualCFGGuider, PerpNegGuider, BasicGuider or KSampler."
        )
    for name, conds in guider.conds.items():
        for cond in conds:
            cond[MARK] = name in AWAY


def negative_model(guider: comfy.samplers.CFGGuider) -> comfy.model_patcher.ModelPatcher | None:
    """The MODEL that DualModelGuider predicts the negative prompt with; None where a guider has one MODEL for all.

    ComfyUI calls it with the `transformer_options` of the other MODEL, identities included.
    """
    return getattr(guider, "uncond_model_patcher", None)


def marked(params: Mapping) -> dict[str, Unconditional]:
    """The mark for the model, from what ComfyUI passes to `extra_conds`.

    A conditioning that a node makes in the middle of a run, such as PerpNeg's, has none of its guider: there
    `prompt_type` tells.
    """
    return {MARK: Unconditional(params.get(MARK, params.get("prompt_type") in AWAY))}
