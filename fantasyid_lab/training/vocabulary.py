"""A caption → the ids that a model's text encoder reads: bytes, or the words of T5's vocabulary."""

from collections.abc import Callable

from torch import Tensor

from fantasyid_core.dit import byte_tokens
from fantasyid_core.errors import WeightsMissingError
from fantasyid_core.optional_import import require

from ..nano import Nano

PURPOSE = "The text encoder's vocabulary"


def tokenizer(model: Nano) -> Callable[[str], Tensor]:
    """A function of a text: its ids (1, 226) int64.

    Raises:
        WeightsMissingError: the text encoder has a vocabulary, and it is not there or cannot be read.
        PackageMissingError: no sentencepiece or transformers.
    """
    folder = model.tokenizer_folder
    if folder is None:
        return lambda text: byte_tokens.encode_batch([text])
    if not folder.is_dir():
        raise WeightsMissingError(
            f"{folder} is not there: the text encoder reads words of a vocabulary (spiece.model). Download it too."
        )
    require("sentencepiece", PURPOSE, names=["SentencePieceProcessor"])
    tokenizer_class = require("transformers", PURPOSE, names=["AutoTokenizer"]).AutoTokenizer
    try:
        pretrained = tokenizer_class.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged vocabulary fails in any way
        raise WeightsMissingError(
            f"{folder} holds no vocabulary that can be read ({type(error).__name__}: {error}). Download it again."
        ) from error
    padded = {"padding": "max_length", "max_length": byte_tokens.TOKENS, "truncation": True, "return_tensors": "pt"}
    return lambda text: pretrained([text], **padded).input_ids
