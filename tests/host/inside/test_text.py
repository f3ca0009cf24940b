"""T5 from a published folder as ComfyUI's CLIP: the same numbers as transformers, on small random weights."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from comfy.text_encoders import genmo, pixart_t5
from pack.fantasyid_core.errors import SamplingError, WeightsError, WeightsMissingError
from pack.nodes.host.compat import t5_clip_type
from pack.nodes.host.text import encode_text, load_text_encoder
from pack.tests.support.in_comfyui import difference
from torch import Tensor
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel, T5TokenizerFast

PROMPTS = {
    "empty": "",
    "short": "A woman with grey hair laughs, (very:1.3) close to the camera.",
    "foreign": "Eine Frau lächelt. 女性が微笑む。 😀",
    "long": "The quick brown fox, a well-known animal, jumps over the lazy dog. " * 30,
}
SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
PIECES = T5TokenizerFast.from_pretrained(os.path.join(os.path.dirname(pixart_t5.__file__), "t5_tokenizer"))
KINDS = {
    "bytes": (ByT5Tokenizer(extra_ids=0), {"vocab_size": 264, "feed_forward_proj": "gated-gelu"}),
    "gated": (PIECES, {"vocab_size": 32128, "feed_forward_proj": "gated-gelu"}),
    "plain": (PIECES, {"vocab_size": 32128, "feed_forward_proj": "relu"}),
}


def save(folder: Path, **config) -> T5EncoderModel:
    """Write an encoder of random weights into a model folder."""
    model = T5EncoderModel(T5Config(**{**SIZES, "num_layers": 2, **config})).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder / "text_encoder")
    return model


@pytest.fixture(scope="module", params=KINDS)
def encoder(request, tmp_path_factory) -> SimpleNamespace:
    """transformers' model and tokenizer, and ComfyUI's CLIP of what it saved."""
    tokenizer, config = KINDS[request.param]
    model = save(folder := tmp_path_factory.mktemp("model"), **config)
    return SimpleNamespace(model=model, tokenizer=tokenizer, clip=load_text_encoder(folder))


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory) -> comfy.sd.CLIP:
    save(folder := tmp_path_factory.mktemp("model"), **KINDS["bytes"][1])
    return load_text_encoder(folder)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_encoder_of_a_folder_matches_transformers(encoder, prompt):
    text = PROMPTS[prompt]
    ids = encoder.tokenizer(text, padding="max_length", max_length=226, truncation=True, return_tensors="pt").input_ids
    ((embeddings, extra),) = encode_text(encoder.clip, text)
    assert embeddings.shape == (1, 226, 32)
    assert difference(embeddings, encoder.model(ids).last_hidden_state) < 1e-5
    assert "attention_mask" not in extra
    tokens = encoder.clip.tokenize(text, disable_weights=True, tokenizer_options={"t5xxl_min_length": 226})["t5xxl"][0]
    if prompt != "long" or encoder.tokenizer is not PIECES:  # those are cut later
        assert [token for token, _ in tokens] == ids[0].tolist()


def test_text_encoder_is_comfyui_s_clip_and_keeps_its_type(encoder):
    attention = encoder.clip.cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention
    assert isinstance(encoder.clip, comfy.sd.CLIP)
    assert attention.q.weight.dtype == torch.float32


def test_a_prompt_that_is_too_long_is_cut_and_the_log_says_so(encoder, caplog):
    encode_text(encoder.clip, PROMPTS["long"])
    warnings = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("FantasyID") and "only the first 225 are used" in line for line in warnings)


def by_stock_node(clip: comfy.sd.CLIP, text: str) -> Tensor:
    """As ComfyUI's CLIPTextEncode does it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def test_the_stock_prompt_node_gives_an_encoder_on_bytes_what_it_was_trained_on(of_bytes):
    for prompt in ("empty", "foreign", "long"):
        ours = encode_text(of_bytes, PROMPTS[prompt])[0][0]
        assert torch.equal(by_stock_node(of_bytes, PROMPTS[prompt]), ours)
    assert torch.equal(by_stock_node(of_bytes, "a\ud83d"), by_stock_node(of_bytes, "a?")), "half a character"
    longer = of_bytes.clone()
    longer.set_tokenizer_option("t5xxl_min_length", 512)  # as ComfyUI's T5TokenizerOptions does
    assert by_stock_node(longer, "hello").shape == (1, 226, 32)
    assert (by_stock_node(longer, "(smiles:1.5)") - by_stock_node(longer, "smiles")).abs().max() > 0.01


def stock(model: type, tokenizer: type) -> comfy.sd.CLIP:
    """As ComfyUI's CLIPLoader builds it from a file, at another size."""
    config = {**SIZES, "num_layers": 1}
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, model_options={"t5xxl_model_config": config})
    torch.manual_seed(1)  # which transformers draws from
    clip.load_sd(T5EncoderModel(T5Config(**config, vocab_size=32128, feed_forward_proj="gated-gelu")).state_dict())
    return clip


def test_a_stock_t5_works_under_either_type():
    types = {"pixart": (pixart_t5.pixart_te(), pixart_t5.PixArtTokenizer)}
    if hasattr(comfy.sd.CLIPType, "COGVIDEOX"):
        from comfy.text_encoders import cogvideo

        types["cogvideox"] = (cogvideo.cogvideo_te(), cogvideo.CogVideoXTokenizer)
    assert t5_clip_type() == list(types)[-1]
    for text in ("hello", PROMPTS["long"]):
        first, *others = (encode_text(stock(*parts), text)[0][0] for parts in types.values())
        assert first.shape == (1, 226, 32)
        assert all(torch.equal(other, first) for other in others), "T5 without a mask is the same under either"


def test_a_stock_t5_with_a_mask_is_refused():
    with pytest.raises(SamplingError, match=f"type '{t5_clip_type()}'"):
        encode_text(stock(genmo.mochi_te(), genmo.MochiT5Tokenizer), "hello")


@pytest.mark.parametrize(
    ("written", "edited", "said"),
    [
        ({"vocab_size": 100}, {}, "32128 or 264"),
        ({}, {"vocab_size": [264]}, r"\[264\] tokens"),
        ({}, {"d_ff": 40}, "4 of another shape"),
        ({}, {"num_layers": 3}, "8 missing"),
        ({"feed_forward_proj": "gated-silu"}, {}, "gated-silu"),
    ],
)
def test_text_encoder_errors_name_what_does_not_fit(tmp_path, written, edited, said):
    """`edited`: the configuration alone, changed after its weights were written."""
    save(tmp_path, **KINDS["plain"][1] | written)
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edited))
    with pytest.raises(WeightsError, match=said):
        load_text_encoder(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsMissingError):
        load_text_encoder(tmp_path / "nowhere")
