"""Guidance that leads to an identity, under every guider of ComfyUI: put together by hand from what branches predict.

Branches that guidance leads towards have the identity, those that it leads away from go without.
"""

from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_perpneg, nodes_slg
from pack.fantasyid_core.dit.injection import Injection
from pack.fantasyid_core.errors import SamplingError
from pack.nodes.host.options import add_injection
from pack.nodes.sampling import trailing_sigmas
from pack.tests.support.in_comfyui import difference, guider, load, sample
from torch import Tensor

CFG = 6.0
SEED = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, 2, 20, 20, generator=SEED)
TEXT, OTHER, NEGATIVE, EMPTY = torch.randn(4, 1, 226, 32, generator=SEED)
TOKENS = torch.randn(20, 64, generator=SEED)
ONCE = comfy.samplers.KSAMPLER(
    lambda model, x, sigmas, extra_args, **_: model(x, sigmas[:1].expand(len(x)), **extra_args)
)


def cond(text: Tensor, **more) -> list:
    return [[text, more]]


def prediction(guider, noise: Tensor = NOISE) -> Tensor:
    return sample(guider, noise, 4, ONCE)


def basic(model, text: Tensor) -> Tensor:
    return prediction(nodes_custom_sampler.BasicGuider.execute(model, cond(text)).args[0])


def cfg_guider(model) -> comfy.samplers.CFGGuider:
    return nodes_custom_sampler.CFGGuider.execute(model, cond(TEXT), cond(NEGATIVE), CFG).args[0]


def dual(model, second: Tensor, style: str):
    conds = cond(TEXT), cond(second), cond(NEGATIVE)
    return nodes_custom_sampler.DualCFGGuider.execute(model, *conds, 3.0, CFG, style).args[0]


def perpneg(model, scale: float):
    return nodes_perpneg.PerpNegGuider.execute(model, cond(TEXT), cond(NEGATIVE), cond(EMPTY), CFG, scale).args[0]


@pytest.fixture(scope="module")
def unguided(plain):
    """A MODEL with the identity in every branch."""
    return add_injection(plain, Injection(TOKENS))


@pytest.fixture(scope="module")
def guided(plain):
    """A MODEL with an identity that guidance leads to."""
    return add_injection(plain, Injection(TOKENS, guide_identity=True))


@pytest.fixture(scope="module")
def identity(unguided) -> SimpleNamespace:
    """What the branches with the identity predict alone."""
    texts = {"text": TEXT, "other": OTHER, "negative": NEGATIVE}
    return SimpleNamespace(**{name: basic(unguided, text) for name, text in texts.items()})


@pytest.fixture(scope="module")
def without(plain) -> SimpleNamespace:
    """What the branches without it predict alone."""
    return SimpleNamespace(negative=basic(plain, NEGATIVE), empty=basic(plain, EMPTY))


@pytest.fixture(scope="module")
def right(identity, without) -> Tensor:
    """The prediction of a guided identity."""
    return without.negative + CFG * (identity.text - without.negative)


@pytest.fixture(scope="module")
def of_both(identity) -> Tensor:
    """The prediction with the identity in both branches."""
    return identity.negative + CFG * (identity.text - identity.negative)


def test_one_branch_alone_is_led_to_and_has_the_identity(guided, identity):
    assert difference(basic(guided, TEXT), identity.text) < 1e-4


def test_two_branches(guided, unguided, right, of_both):
    assert difference(prediction(cfg_guider(guided)), right) < 1e-4
    assert difference(prediction(cfg_guider(unguided)), of_both) < 1e-4


def test_the_ksampler_node_guides_as_the_guider_does(guided):
    sigmas = trailing_sigmas(guided, 1)
    conds = cond(TEXT), cond(NEGATIVE)
    by_node = comfy.sample.sample(
        guided, NOISE, 1, CFG, "euler", "simple", *conds, torch.zeros_like(NOISE), seed=0, sigmas=sigmas,
        disable_pbar=True,
    )  # fmt: skip
    assert difference(by_node, sample(cfg_guider(guided), NOISE, 1, "euler")) < 1e-4


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_two_prompts_that_are_the_same_are_one(guided, right, style):
    assert difference(prediction(dual(guided, TEXT, style)), right) < 1e-4


def test_two_prompts(guided, identity, without):
    negative, second, first = without.negative, identity.other, identity.text
    regular = negative + CFG * (second - negative) + 3 * (first - second)
    nested = negative + CFG * (second + 3 * (first - second) - negative)
    assert difference(prediction(dual(guided, OTHER, "regular")), regular) < 1e-4
    assert difference(prediction(dual(guided, OTHER, "nested")), nested) < 1e-4


def test_perpneg_leads_away_from_the_empty_and_the_negative_prompt(guided, unguided, identity, without):
    nothing_negative = without.empty + CFG * (identity.text - without.empty)
    assert difference(prediction(perpneg(guided, 0.0)), nothing_negative) < 1e-4
    right = nodes_perpneg.perp_neg(NOISE, identity.text, without.negative, without.empty, 0.7, CFG)
    assert difference(prediction(perpneg(guided, 0.7)), right) < 1e-4
    patched = nodes_perpneg.PerpNeg.execute(guided, cond(EMPTY), 0.7).args[0]
    assert difference(prediction(cfg_guider(patched)), right) < 1e-4
    assert difference(prediction(perpneg(guided, 0.7)), prediction(perpneg(unguided, 0.7))) > 0.01


def test_a_branch_that_a_node_asks_for_again_alone_is_the_same(guided, plain, identity, without, right):
    skipping = nodes_slg.SkipLayerGuidanceDiT.execute(guided, 2.0, 0.0, 1.0, "99", "", 0.0).args[0]
    assert difference(prediction(cfg_guider(skipping)), right) < 1e-4
    inputs, alone = [], []

    def again(args: dict) -> Tensor:
        for name in ("cond", "uncond"):
            alone.extend(
                comfy.samplers.calc_cond_batch(
                    args["model"], [args[name]], inputs[0], args["sigma"], args["model_options"]
                )
            )
        return args["denoised"]

    asking = guided.clone()
    asking.set_model_sampler_pre_cfg_function(lambda args: inputs.append(args["input"]) or args["conds_out"])
    asking.set_model_sampler_post_cfg_function(again)
    prediction(cfg_guider(asking))
    positive, negative = (plain.model.process_latent_out(x) for x in alone)
    assert difference(positive, identity.text) < 1e-4
    assert difference(negative, without.negative) < 1e-4


def test_a_prompt_that_sets_in_later(guided, right):
    positive = cond(TEXT) + cond(OTHER, start_percent=0.5)
    assert difference(prediction(guider(guided, positive, cond(NEGATIVE))), right) < 1e-4


def test_two_samples(guided, right):
    for one in prediction(cfg_guider(guided), NOISE.repeat(2, 1, 1, 1, 1)).split(1):
        assert difference(one, right) < 1e-4


class OwnGuider(comfy.samplers.CFGGuider):
    """Of another pack, with a conditioning of its own."""

    def __init__(self, model):
        super().__init__(model)
        self.inner_set_conds({"positive": cond(TEXT), "style": cond(NEGATIVE)})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        conds = [self.conds["style"], self.conds["positive"]]
        style, positive = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return style + CFG * (positive - style)


def test_a_guider_with_a_conditioning_of_unknown_meaning_is_refused_by_name(guided, unguided, of_both):
    with pytest.raises(SamplingError, match=r"(?s)OwnGuider has a conditioning 'style'.*Switch guide_identity off"):
        prediction(OwnGuider(guided))
    assert difference(prediction(OwnGuider(unguided)), of_both) < 1e-4


@pytest.mark.skipif(not hasattr(nodes_custom_sampler, "DualModelGuider"), reason="this ComfyUI has no DualModelGuider")
def test_the_negative_prompt_may_have_a_model_with_identities_of_its_own(
    guided, unguided, right, of_both, standin_nano
):
    own = load(standin_nano)
    for model, negative, expected in (
        (guided, own, right),
        (guided, add_injection(own, Injection(TOKENS, guide_identity=True)), right),
        (unguided, own, right),
        (unguided, add_injection(own, Injection(TOKENS)), of_both),
    ):
        made = nodes_custom_sampler.DualModelGuider.execute(
            model, model_negative=negative, positive=cond(TEXT), cfg=CFG, negative=cond(NEGATIVE)
        ).args[0]
        assert difference(prediction(made), expected) < 1e-4
