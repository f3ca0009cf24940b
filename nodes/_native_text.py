"""T5 as the host's `CLIP`: encoders of a model's folder, and prompts as CogVideoX was trained on them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sd1_clip
from comfy.text_encoders.pixart_t5 import PixArtTokenizer, pixart_te

from ..fantasyid_core import weights
from ..fantasyid_core.errors import SamplingError, WeightsError, WeightsMissingError

TOKENS = 226  # a prompt's length, end token and padding included
END = 1
VOCABULARY = 32128  # T5's own, whose tokenizer the host brings
FIXED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
ACTIVATIONS = {"gated-gelu": ("gelu_pytorch_tanh", True), "relu": ("relu", False)}
UNUSED = ("decoder.", "lm_head.", "encoder.embed_tokens.")


def load_text_encoder(folder: Path) -> comfy.sd.CLIP:
    """The T5 of a model's `text_encoder/`, of any size, weights stored as in the file, computing in float32.

    Raises:
        WeightsMissingError, WeightsError: not there, damaged, or no T5 encoder that the host can run.
    """
    folder = folder / "text_encoder"
    if not folder.is_dir():
        raise WeightsMissingError(
            f"{folder} is not there: copy or download it, or load T5-XXL with CLIPLoader set to type 'pixart'."
        )
    config, tensors = _host_config(weights.read_config(folder), folder), weights.read(folder)
    dtype = tensors["shared.weight"].dtype if "shared.weight" in tensors else None
    # The host's own T5 without attention mask (its type "pixart"), built empty: it takes the mapped tensors themselves.
    with weights.configured("T5 text encoder"):
        clip = comfy.sd.CLIP(
            SimpleNamespace(params={}, clip=pixart_te(), tokenizer=PixArtTokenizer),
            model_options={"t5xxl_model_config": config, "dtype": dtype, "initial_device": "meta"},
        )
    weights.load_into(clip.cond_stage_model.t5xxl.transformer, tensors, ignore=UNUSED, what="T5 text encoder")
    return clip


def encode_text(clip: comfy.sd.CLIP, text: str) -> list[list]:
    """The host's conditioning of a prompt: embeddings (1, 226, D) float32, padding included, as CogVideoX reads it.

    Raises:
        SamplingError: not a T5 alone, or one with an attention mask, whose padding would come out different.
    """
    tokens = clip.tokenize(text, disable_weights=True, tokenizer_options={"t5xxl_min_length": TOKENS})
    model = getattr(clip.cond_stage_model, "t5xxl", None)
    if set(tokens) != {"t5xxl"} or not isinstance(model, comfy.sd1_clip.SDClipModel) or model.enable_attention_masks:
        raise SamplingError(
            f"This CLIP ({type(clip.cond_stage_model).__name__}) is not the text encoder of CogVideoX. Load T5-XXL "
            "with CLIPLoader set to type 'pixart', or use 'FantasyID Load Text Encoder'."
        )
    (prompt,) = tokens["t5xxl"]
    if len(prompt) > TOKENS:
        logging.warning("FantasyID: the prompt has %d tokens; only the first %d are used.", len(prompt) - 1, TOKENS - 1)
        prompt = [*prompt[: TOKENS - 1], (END, 1.0)]
    return clip.encode_from_tokens_scheduled({"t5xxl": [prompt]})


def _host_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """transformers' `config.json` in the host's terms."""
    kind, gate = config.get("model_type"), config.get("feed_forward_proj", "relu")
    if kind != "t5" or gate not in ACTIVATIONS or config.get("vocab_size") != VOCABULARY:
        raise WeightsError(
            f"{folder} holds a '{kind}' with feed_forward_proj '{gate}' and {config.get('vocab_size')} tokens, not "
            f"a T5 encoder ({' or '.join(ACTIVATIONS)}) with T5's {VOCABULARY} tokens."
        )
    wrong = [name for name, value in FIXED.items() if config.get(name, value) != value]
    missing = [name for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers") if name not in config]
    if wrong or missing:
        raise WeightsError(
            f"{folder / 'config.json'} does not describe a T5 encoder: see {', '.join(wrong + missing)}."
        )
    activation, gated = ACTIVATIONS[gate]
    sizes = {name: config[name] for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")}
    return {**sizes, "dense_act_fn": activation, "is_gated_act": gated, "model_type": "t5"}
