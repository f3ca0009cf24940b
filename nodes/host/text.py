"""T5 as the host's `CLIP`: encoders of a model's folder, and prompts as CogVideoX was trained on them.

Which tokens an encoder reads is told by the size of its vocabulary: T5's own, or bytes (FantasyID-nano).
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
from comfy.text_encoders.pixart_t5 import PixArtTokenizer, pixart_te

from ...fantasyid_core.dit import byte_tokens
from ...fantasyid_core.dit.byte_tokens import TOKENS
from ...fantasyid_core.errors import SamplingError, WeightsError, WeightsMissingError
from ...fantasyid_core.io import weights
from . import notes
from .compat import late_shapes, make_clip, read_weights, remember_loader, t5_clip_type

FIXED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
ACTIVATIONS = {"gated-gelu": ("gelu_pytorch_tanh", True), "relu": ("relu", False)}
UNUSED = ("decoder.", "lm_head.", "encoder.embed_tokens.")


class ByteTokenizer(comfy.sd1_clip.SDTokenizer):
    """A prompt's UTF-8 bytes as tokens, in the host's interface, always 226 of them: the stock nodes ask for no length.

    An end token and padding are there already, as the encoder was trained; weights such as `(very:1.3)` work.
    """

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: Mapping[str, Any] = {}):
        super().__init__(
            embedding_directory=embedding_directory,
            embedding_key="t5xxl",
            tokenizer_class=_Bytes,
            has_start_token=False,
            pad_with_end=False,
            pad_to_max_length=False,
            max_length=10**8,
            min_length=TOKENS,
            tokenizer_data=tokenizer_data,
        )

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, tokenizer_options: Mapping[str, Any] = {}, **options: Any
    ) -> list[list[tuple]]:
        """One list of 226 (token, weight) or (token, weight, word id); `tokenizer_options` (lengths) do not apply."""
        (prompt,) = super().tokenize_with_weights(text, return_word_ids, **options)
        return [_cut(prompt)]


class _Bytes:
    """What the host's tokenizers wrap, as transformers' tokenizers have it."""

    @classmethod
    def from_pretrained(cls, path: str) -> "_Bytes":
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Token ids and the end token, uncut; what is no character (half of a surrogate pair) becomes '?'."""
        data = text.encode(errors="replace")
        return {"input_ids": byte_tokens.encode(data.decode(), len(data) + 1)}

    def get_vocab(self) -> dict[str, int]:
        return {byte_tokens.decode([token]) or f"<{token}>": token for token in range(byte_tokens.VOCABULARY)}


class _ByteTokenizers(comfy.sd1_clip.SD1Tokenizer):
    """A model's tokenizers by name, as `comfy.sd.CLIP` wants them."""

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: Mapping[str, Any] = {}):
        super().__init__(embedding_directory, tokenizer_data, clip_name="t5xxl", tokenizer=ByteTokenizer)


TOKENIZERS = {32128: PixArtTokenizer, byte_tokens.VOCABULARY: _ByteTokenizers}  # by size of the vocabulary


def load_text_encoder(folder: Path, dynamic: bool = True) -> comfy.sd.CLIP:
    """The T5 of a model's `text_encoder/`, of any size, weights stored as in the file, computing in float32.

    Its tokenizer is the host's own for T5, or bytes.

    Args:
        dynamic: False for weights that ComfyUI is to hold whole.

    Raises:
        WeightsMissingError, WeightsError: not there, damaged, or no T5 encoder that the host can run.
    """
    part = folder / "text_encoder"
    if not part.is_dir():
        raise WeightsMissingError(
            f"Copy or download the text encoder, or load T5-XXL with CLIPLoader set to type '{t5_clip_type()}': {part} "
            "is not there."
        )
    config, tensors = _host_config(weights.read_config(part), part), read_weights(part)
    dtype = tensors["shared.weight"].dtype if "shared.weight" in tensors else None
    # The host's own T5 without attention mask (its type "pixart"), built empty: it takes the mapped tensors themselves.
    with weights.configured("T5 text encoder"):
        clip = make_clip(
            SimpleNamespace(params={}, clip=pixart_te(), tokenizer=TOKENIZERS[config["vocab_size"]]),
            {"t5xxl_model_config": config, "dtype": dtype, "initial_device": "meta"},
            dynamic,
        )
    encoder = clip.cond_stage_model.t5xxl.transformer
    weights.load_into(encoder, tensors, ignore=UNUSED, late=late_shapes(encoder), what="T5 text encoder")
    remember_loader(clip.patcher, _load_patcher, folder)
    return clip


def _load_patcher(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_text_encoder(folder, not disable_dynamic).patcher


def encode_text(clip: comfy.sd.CLIP, text: str) -> list[list]:
    """The host's conditioning of a prompt: embeddings (1, 226, D) float32, padding included, as CogVideoX reads it.

    Raises:
        SamplingError: not a T5 alone, or one with an attention mask, whose padding would come out different.
    """
    tokens = clip.tokenize(text, disable_weights=True, tokenizer_options={"t5xxl_min_length": TOKENS})
    model: Any = getattr(clip.cond_stage_model, "t5xxl", None)
    if set(tokens) != {"t5xxl"} or not isinstance(model, comfy.sd1_clip.SDClipModel) or model.enable_attention_masks:
        raise SamplingError(
            f"This CLIP ({type(clip.cond_stage_model).__name__}) is not the text encoder of CogVideoX. Load T5-XXL "
            f"with CLIPLoader set to type '{t5_clip_type()}', or use 'FantasyID Load Text Encoder'."
        )
    (prompt,) = tokens["t5xxl"]
    return clip.encode_from_tokens_scheduled({"t5xxl": [_cut(prompt)]})


def _cut(prompt: list[tuple]) -> list[tuple]:
    """The first 225 of a prompt's tokens, then its end token; a prompt that fits, padded as it is, stays."""
    if len(prompt) <= TOKENS:
        return prompt
    notes.warn(
        f"The prompt is too long: it has {len(prompt) - 1} tokens, and only the first {TOKENS - 1} are used. Shorten "
        "it, or what stands at its end is not in the video."
    )
    return [*prompt[: TOKENS - 1], prompt[-1]]


def _host_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """transformers' `config.json` in the host's terms."""
    kind, gate = config.get("model_type"), config.get("feed_forward_proj", "relu")
    if kind != "t5" or gate not in (*ACTIVATIONS,) or config.get("vocab_size") not in (*TOKENIZERS,):
        raise WeightsError(
            f"{folder} holds a '{kind}' with feed_forward_proj '{gate}' and {config.get('vocab_size')} tokens, not "
            f"a T5 encoder ({' or '.join(ACTIVATIONS)}) with {' or '.join(map(str, TOKENIZERS))} tokens. "
            "Use the text_encoder of CogVideoX, or T5-XXL with CLIPLoader."
        )
    wrong = [name for name, value in FIXED.items() if config.get(name, value) != value]
    missing = [name for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers") if name not in config]
    if wrong or missing:
        raise WeightsError(
            f"{folder / 'config.json'} does not describe a T5 encoder: see {', '.join(wrong + missing)}. "
            "Copy or download its config.json again."
        )
    activation, gated = ACTIVATIONS[gate]
    sizes = {name: config[name] for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")}
    return {**sizes, "dense_act_fn": activation, "is_gated_act": gated, "model_type": "t5"}
