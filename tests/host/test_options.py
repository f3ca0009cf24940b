"""What ComfyUI and its nodes hand to a DiT reaches ours (`scripts/options.py`; docs/comfyui_options.md)."""

import pytest


@pytest.fixture(scope="module")
def found(host_script, standin_nano, tmp_path_factory) -> dict:
    return host_script("options.py", standin_nano, tmp_path_factory.mktemp("host"))


def needs(found: dict, name: str):
    """What was found of a node that only newer versions of ComfyUI have."""
    if name not in found:
        pytest.skip(f"this ComfyUI has no {name.split()[0]}")
    return found[name]


def test_all_of_ours_is_under_one_key_that_clones_share(found):
    assert found["keys of ours"] == ["fantasyid"]
    assert found["settings"] == [1, False, True]
    assert found["clones share"]


def test_a_run_leaves_nothing_behind(found):
    assert found["shared state untouched"]
    assert found["no run left"]


def test_a_nodes_attention_is_called_for_every_attention_of_the_dit(found):
    heads, width = found["heads"]
    tokens = 226 + found["video tokens"]
    blocks = [[[2, heads, tokens, width], tokens, heads, True, True]] * found["blocks"]
    calls = found["override, a step"]
    assert [call for call in calls if call[1] == tokens] == blocks
    injections = [call for call in calls if call[1] != tokens]
    assert [(call[0][0], call[0][2], call[1]) for call in injections] == [(2, found["video tokens"], 20)] * len(
        injections
    )
    assert injections
    assert found["override calls"] == 3 * len(calls)
    assert found["override difference"] < 1e-5
    assert found["override acts"] > 1e-3


def test_comfyuis_node_chooses_the_attention(found):
    difference, calls = needs(found, "ModelAttentionBackend")
    assert difference < 1e-5
    assert calls == found["override calls"]


def test_what_comfyui_was_started_with_is_called_for_every_attention(found):
    difference, calls = found["started with another"]
    assert difference == 0
    assert calls == found["override calls"]


def test_where_nobody_chose_the_blocks_ask_for_the_fastest_kernel(found):
    difference, shape = found["fastest"]
    heads, width = found["heads"]
    assert shape == [2, heads, 226 + found["video tokens"], width, "torch.float32", "cpu"]
    assert found["asked for"] == {"blocks": [3 * found["blocks"], True], "injections": [6, False]}
    assert found["order afterwards"]
    assert difference < 1e-5


def test_nothing_is_measured_where_somebody_chose_or_trains(found):
    assert found["measured under an override"] == 0
    assert found["measured in training"] == 0
    assert found["measured where another was chosen"] == 0


@pytest.mark.parametrize("name", ["attn1_output_patch", "attn1_patch"])
def test_patches_of_the_attention_act_like_doubled_weights_after_it(found, name):
    assert found[name] < 1e-5


def test_patches_of_the_attention_are_told_where_they_are(found):
    tokens, blocks = 226 + found["video tokens"], found["blocks"]
    heads, width = found["heads"]
    assert found["given to attn1_output_patch"] == [
        [[tokens, heads * width], i, blocks, "double", [226, tokens], [1, 0]] for i in range(blocks)
    ]


@pytest.mark.parametrize("name", ["HyperTile", "TomePatchModel"])
def test_patches_for_unets_are_refused(found, name):
    assert "is for another kind of model" in found[name]


def test_a_mask_is_refused(found):
    assert "masks tokens" in found["masking"]


def test_naguidance_acts_on_the_videos_tokens(found):
    assert needs(found, "NAGuidance acts") > 1e-3
    blocks, difference = found["NAGuidance at scale 1"]
    assert blocks == 3 * found["blocks"]
    assert difference == 0


def test_patches_before_the_blocks(found):
    assert found["post_input"] < 1e-5


def test_patches_after_and_instead_of_a_block(found):
    difference, seen = found["double_block"]
    assert difference == 0
    assert seen == [[i, i, found["blocks"], "double", 2, [1], [4]] for i in range(found["blocks"])]
    assert found["patches_replace"] < 1e-5


def test_hooks_bring_patches_along(found):
    assert found["hooks act"] > 1e-3


def test_positions_are_scaled(found):
    assert found["ScaleROPE at 1"] == 0
    assert found["ScaleROPE acts"] > 1e-3


def test_easycache_runs_around_the_model(found):
    assert found["EasyCache, nothing reused"] == 0


def test_a_controlnet_is_refused(found):
    assert "ComfyUI has none for CogVideoX" in found["control"]
