"""Text as bytes for a T5 encoder without a vocabulary file: every UTF-8 byte is a token (Xue et al. 2022, ByT5).

A text encoder whose `config.json` has `"vocab_size": 264` reads text this way; 32,128 is T5's own vocabulary.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PAD, END = 0, 1
OFFSET = 3  # the first ids are padding, end and unknown; then the 256 bytes follow
VOCABULARY = 264  # 259 rounded up to a multiple of 8
TOKENS = 226  # a prompt's length, end token and padding included, as CogVideoX reads it


def encode(text: str, length: int = TOKENS) -> list[int]:
    """`length` ids: the first `length` − 1 bytes of the text, the end token, padding."""
    ids = [byte + OFFSET for byte in text.encode()[: length - 1]]
    return [*ids, END, *[PAD] * (length - 1 - len(ids))]


def encode_batch(texts: Iterable[str], length: int = TOKENS) -> Tensor:
    """(B, length) int64."""
    return torch.tensor([encode(text, length) for text in texts])


def decode(ids: Sequence[int]) -> str:
    """The text behind `ids`, up to the end token; a character that was cut in two is dropped."""
    data = []
    for token in ids:
        if token == END:
            break
        if OFFSET <= token < OFFSET + 256:
            data.append(token - OFFSET)
    return bytes(data).decode(errors="ignore")
