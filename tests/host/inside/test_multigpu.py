"""ComfyUI's own node that shares guidance out over cards, on our MODEL. The CPU stands for two cards, by two names."""

from collections import Counter

import comfy.model_management
import pytest
import torch
from pack.fantasyid_core.dit.injection import Injection
from pack.fantasyid_core.dit.step_cache import CacheSettings
from pack.fantasyid_core.errors import HardwareError
from pack.nodes.host import options
from pack.nodes.host.model import load_model, read_model
from pack.nodes.host.options import add_injection, set_step_cache
from pack.nodes.host.sampler import ReleaseSampler
from pack.tests.support import in_comfyui
from pack.tests.support.in_comfyui import difference, guider
from torch import Tensor

nodes_multigpu = pytest.importorskip("comfy_extras.nodes_multigpu", reason="this ComfyUI uses one card")

SEED = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, 3, 20, 20, generator=SEED)
TEXT, NEGATIVE = torch.randn(2, 1, 226, 32, generator=SEED)
TOKENS, OTHER_TOKENS = torch.randn(2, 20, 64, generator=SEED)
CARDS = [torch.device("cpu"), torch.device("cpu", 0)]
STEPS = 8
EVERY_SECOND = CacheSettings(1e9, start=0.0, most=1)


@pytest.fixture(scope="module", autouse=True)
def two_cards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: CARDS)
        yield


@pytest.fixture(scope="module")
def model(standin_nano):
    """With a second card ComfyUI reads it anew from its files."""
    path = standin_nano / "transformer"
    config, published = read_model(path)
    model = load_model(config, published, source=path)
    return add_injection(model, Injection(TOKENS, guide_identity=True))


@pytest.fixture
def whole_steps() -> Counter[str]:
    """How many steps were computed whole, by card and number of guidance branches."""
    return Counter()


@pytest.fixture(scope="module")
def outputs() -> list:
    """What nodes gave: ComfyUI's cache keeps it alive."""
    return []


@pytest.fixture
def sample(whole_steps, outputs):
    def sample(model) -> Tensor:
        """Latents, as the node FantasyID Sampler makes them, in the mode that ComfyUI runs its nodes in."""

        def count(block: dict) -> dict:
            card, branches = block["transformer_options"].get("multigpu_thread_device"), len(block["img"])
            whole_steps[f"{card}: {branches}"] += block["block_index"] == 1  # no skipped step comes so far
            return block

        model = model.clone()
        outputs.append(model)
        model.set_model_patch(count, "double_block")
        sampler = ReleaseSampler("ddim", STEPS, torch.Generator().manual_seed(2))
        with torch.inference_mode():
            return in_comfyui.sample(guider(model, [[TEXT, {}]], [[NEGATIVE, {}]]), NOISE, STEPS, sampler)

    return sample


@pytest.fixture
def split(outputs):
    def split(model):
        """The MODEL for two cards."""
        outputs.append(nodes_multigpu.MultiGPUCFGSplitNode.execute(model, 2).args[0])
        return outputs[-1]

    return split


@pytest.fixture
def one_after_the_other(sample, monkeypatch):
    def one_after_the_other(model) -> Tensor:
        """Latents of one card that is said to be too small for both branches at once."""
        with monkeypatch.context() as patch:
            patch.setattr(model.model, "memory_required", lambda *_, **__: 1e15)
            return sample(model)

    return one_after_the_other


def test_each_card_computes_one_branch_with_the_latents_of_one_card(model, sample, split, whole_steps):
    one = sample(model)
    assert whole_steps == {"None: 2": STEPS}
    whole_steps.clear()
    assert difference(sample(split(model)), one) < 1e-5
    assert whole_steps == {"cpu: 1": STEPS, "cpu:0: 1": STEPS}


def test_a_second_identity_for_a_part_of_the_run_acts_on_both_cards(model, sample, split):
    both = add_injection(model, Injection(OTHER_TOKENS, strength=0.5, end=0.6))
    assert difference(sample(both), sample(model)) > 1e-3
    assert difference(sample(split(both)), sample(both)) < 1e-5


def test_what_is_set_after_the_node_holds_on_both_cards(model, sample, split):
    injection = Injection(OTHER_TOKENS, strength=0.5)
    before, after = split(add_injection(model, injection)), add_injection(split(model), injection)
    assert torch.equal(sample(after), sample(before))


def test_both_cards_skip_the_same_steps(model, sample, split, one_after_the_other, whole_steps):
    cached = set_step_cache(model, EVERY_SECOND)
    one = one_after_the_other(cached)
    assert whole_steps == {"None: 1": 2 * 5}
    whole_steps.clear()
    assert difference(sample(split(cached)), one) < 1e-5
    assert whole_steps == {"cpu: 1": 5, "cpu:0: 1": 5}


def test_the_first_card_decides_which_steps_are_skipped(model, sample, split, one_after_the_other):
    cached = set_step_cache(model, CacheSettings(0.15))
    assert difference(sample(split(cached)), one_after_the_other(cached)) < 1e-5


def test_a_card_that_cannot_multiply_in_8_bits_is_named(model, sample, split, monkeypatch):
    monkeypatch.setattr(options.fp8, "missing", lambda card: "the second has 8.6" if card == CARDS[1] else None)
    with pytest.raises(HardwareError, match=r"8\.9 or more .* the second has 8\.6\. Switch it off"):
        sample(split(options.set_fp8_products(model, True)))
