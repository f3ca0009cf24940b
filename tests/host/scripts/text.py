"""T5 from a published folder as the host's CLIP, compared with transformers on the same small random weights."""

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import host

base = Path(sys.argv[1])
host.start(base)

import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.text_encoders import genmo, pixart_t5  # noqa: E402
from pack.fantasyid_core.errors import FantasyIDError  # noqa: E402
from pack.nodes.host.compat import t5_clip_type  # noqa: E402
from pack.nodes.host.text import encode_text, load_text_encoder  # noqa: E402
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel, T5TokenizerFast  # noqa: E402

torch.set_grad_enabled(False)
torch.manual_seed(0)
PROMPTS = {
    "empty": "",
    "short": "A woman with grey hair laughs, (very:1.3) close to the camera.",
    "foreign": "Eine Frau lächelt. 女性が微笑む。 😀",
    "long": "The quick brown fox, a well-known animal, jumps over the lazy dog. " * 30,
}
found: dict = {}
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger().addHandler(handler)

pieces = T5TokenizerFast.from_pretrained(os.path.join(os.path.dirname(pixart_t5.__file__), "t5_tokenizer"))
for name, gate, tokenizer, vocabulary in (
    ("bytes", "gated-gelu", ByT5Tokenizer(extra_ids=0), 264),
    ("gated", "gated-gelu", pieces, 32128),
    ("plain", "relu", pieces, 32128),
):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": vocabulary}
    config = T5Config(**sizes, feed_forward_proj=gate)
    theirs = T5EncoderModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    folder = base / name
    theirs.save_pretrained(folder / "text_encoder")
    clip = load_text_encoder(folder)
    if name == "bytes":
        of_bytes = clip
    for key, text in PROMPTS.items():
        ids = tokenizer(text, padding="max_length", max_length=226, truncation=True, return_tensors="pt").input_ids
        ours = clip.tokenize(text, disable_weights=True, tokenizer_options={"t5xxl_min_length": 226})["t5xxl"][0]
        if len(ours) == 226:
            found[f"{name} {key} same tokens"] = [token for token, _ in ours] == ids[0].tolist()
        reference = theirs(ids).last_hidden_state
        ((embeddings, extra),) = encode_text(clip, text)
        found[f"{name} {key} shape"] = list(embeddings.shape)
        found[f"{name} {key} difference"] = float((embeddings - reference).norm() / reference.norm())
        found[f"{name} {key} has a mask"] = "attention_mask" in extra


def by_stock_node(text: str) -> torch.Tensor:
    """As the host's CLIPTextEncode does it, with an encoder on bytes."""
    return of_bytes.encode_from_tokens_scheduled(of_bytes.tokenize(text))[0][0]


found["half a character"] = torch.equal(by_stock_node("a\ud83d"), by_stock_node("a?"))
for key in ("empty", "foreign", "long"):
    found[f"stock {key}"] = torch.equal(by_stock_node(PROMPTS[key]), encode_text(of_bytes, PROMPTS[key])[0][0])
of_bytes.set_tokenizer_option("t5xxl_min_length", 512)  # as the host's T5TokenizerOptions does
found["stock at 512 tokens"] = list(by_stock_node("hello").shape)
found["stock weights act"] = bool((by_stock_node("(smiles:1.5)") - by_stock_node("smiles")).abs().max() > 0.01)
found["warnings"] = [w for w in warnings if w.startswith("FantasyID")]
weight = clip.cond_stage_model.t5xxl.transformer.encoder.block[0].layer[0].SelfAttention.q.weight
found["is_host_clip"] = isinstance(clip, comfy.sd.CLIP)
found["kept_dtype"] = str(weight.dtype)


def small(model: type, tokenizer: type) -> comfy.sd.CLIP:
    """As the host's CLIPLoader builds it from a file, at another size."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1}
    target = SimpleNamespace(params={}, clip=model, tokenizer=tokenizer)
    made = comfy.sd.CLIP(target, model_options={"t5xxl_model_config": sizes})
    made.load_sd(T5EncoderModel(T5Config(**sizes, vocab_size=32128, feed_forward_proj="gated-gelu")).state_dict())
    return made


STOCK = {"pixart": (pixart_t5.pixart_te(), pixart_t5.PixArtTokenizer)}
if hasattr(comfy.sd.CLIPType, "COGVIDEOX"):
    from comfy.text_encoders import cogvideo

    STOCK["cogvideox"] = (cogvideo.cogvideo_te(), cogvideo.CogVideoXTokenizer)
found["stock"] = {}
for name, parts in STOCK.items():
    torch.manual_seed(1)
    stock = small(*parts)
    embeddings = {text: encode_text(stock, text)[0][0] for text in ("hello", PROMPTS["long"])}
    found["stock"][name] = [[list(x.shape), float(x.sum())] for x in embeddings.values()]
found["recommended"] = t5_clip_type()
masked = small(genmo.mochi_te(), genmo.MochiT5Tokenizer)


def refused(action) -> str:
    try:
        action()
    except FantasyIDError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def with_config(**changes) -> Path:
    T5EncoderModel(T5Config(**{**config.to_diff_dict(), **changes})).save_pretrained(base / "other" / "text_encoder")
    return base / "other"


def with_edited(**changes) -> Path:
    """The configuration alone, changed after its weights were written."""
    folder = with_config()
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


found["errors"] = {
    "masked": refused(lambda: encode_text(masked, "hello")),
    "missing": refused(lambda: load_text_encoder(base / "nowhere")),
    "vocabulary": refused(lambda: load_text_encoder(with_config(vocab_size=100))),
    "odd vocabulary": refused(lambda: load_text_encoder(with_edited(vocab_size=[264]))),
    "shapes": refused(lambda: load_text_encoder(with_edited(d_ff=40))),
    "layers": refused(lambda: load_text_encoder(with_edited(num_layers=3))),
    "activation": refused(lambda: load_text_encoder(with_config(feed_forward_proj="gated-silu"))),
}
host.report(**found)
