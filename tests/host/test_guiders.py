"""Guidance that leads to an identity is right under every guider of ComfyUI (`scripts/guiders.py`)."""

import pytest

EQUAL = [
    *("BasicGuider", "CFGGuider", "KSampler", "both branches"),
    *("DualCFGGuider regular, both prompts the same", "DualCFGGuider nested, both prompts the same"),
    *("DualCFGGuider regular", "DualCFGGuider nested"),
    *("PerpNegGuider, nothing negative", "PerpNegGuider", "PerpNeg", "SkipLayerGuidanceDiT"),
    *("a prompt that sets in later", "two samples", "unknown guider, both branches"),
]


@pytest.fixture(scope="module")
def found(host_script, standin_nano, tmp_path_factory) -> dict:
    return host_script("guiders.py", standin_nano, tmp_path_factory.mktemp("host"))


@pytest.mark.parametrize("case", EQUAL)
def test_a_prediction_is_what_its_branches_predict_alone(found, case):
    """Branches that guidance leads towards have the identity, those that it leads away from go without."""
    assert found[case] < 1e-4


def test_an_identity_that_guidance_leads_to_acts_under_perpneg(found):
    assert found["guided acts under PerpNegGuider"] > 0.01


def test_a_branch_that_a_node_asks_for_alone_is_the_same(found):
    assert max(found["a branch alone"]) < 1e-4


def test_a_guider_with_a_conditioning_of_unknown_meaning_is_refused_by_name(found):
    assert "OwnGuider has a conditioning 'style'" in found["unknown guider"]
    assert "Switch guide_identity off" in found["unknown guider"]


@pytest.mark.parametrize("case", ["guided", "both guided", "identity in one", "identity in both"])
def test_the_negative_prompt_may_have_a_model_with_identities_of_its_own(found, case):
    case = f"DualModelGuider, {case}"
    if case not in found:
        pytest.skip("this ComfyUI has no DualModelGuider")
    assert found[case] < 1e-4
