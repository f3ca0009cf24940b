"""Stage text: the byte encoder learns to classify what captions say, before the DiT needs its embeddings.

The probe that it learns with is not exported.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fantasyid_core.dit import byte_tokens

from .. import nano
from ..people.caption import stated_labels
from ..people.clip import Clip, clip
from ..people.colours import COLOURS
from ..people.hair import HAIR_COLOURS
from ..people.person import TRAIN, VALIDATION, person
from . import data
from .options import TextOptions
from .stage import Batch, Context, Stage, evaluating, trainable

SIDES = ("left", "right")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "turn": SIDES,
    "tilt": SIDES,
    "gaze": (*SIDES, "up", "down"),
    **{name: ("yes",) for name in ("smile", "talk", "blink", "nod", "brows")},
    "shirt": tuple(COLOURS),
    "background": tuple(COLOURS),
    "sex": ("female", "male"),
    "age": ("young", "middle-aged", "old"),
    "hair": tuple(HAIR_COLOURS),
}
"""Attributes of a caption → their classes from 1; class 0 is that the caption leaves it open."""
AGES = {"young": "young", "middle-aged": "middle-aged", "old": "old", "elderly": "old", "older": "old"}
PER_PERSON = 4  # captions


def attribute_targets(one: Clip) -> list[int]:
    """Classes (one for each of `ATTRIBUTES`) that a clip's caption states; 0 where it leaves one open."""
    text, labels = one.caption.lower(), one.labels
    tokens = text.replace(",", " ").replace(".", " ").replace(":", " ").split()
    stated = {name: getattr(labels, name) for name in stated_labels(text, labels)}
    stated = {name: "yes" if value is True else value for name, value in stated.items()}
    if {"she", "her", "woman"} & set(tokens):
        stated["sex"] = "female"
    elif {"he", "his", "man"} & set(tokens):
        stated["sex"] = "male"
    stated |= dict([("age", AGES[word]) for word in tokens if word in AGES][:1])
    # "brown hair" is in "dark brown hair" as well: the longest name is the right one
    names = [name for name in HAIR_COLOURS if f"{name} hair" in text]
    stated |= {"hair": max(names, key=len)} if names else {}
    return [1 + options.index(stated[name]) if name in stated else 0 for name, options in ATTRIBUTES.items()]


class Corpus:
    """A ring of captions: ids (N, 226) int64 and targets (N, attributes) int64, drawn by number.

    Args:
        size: N; split: seeds of the people; start: which comes first.
    """

    def __init__(self, size: int, split: range, start: int, device: torch.device):
        self.split, self.start, self.count = split, start, 0
        self.ids = torch.zeros(size, byte_tokens.TOKENS, dtype=torch.int64, device=device)
        self.targets = torch.zeros(size, len(ATTRIBUTES), dtype=torch.int64, device=device)

    @property
    def filled(self) -> int:
        """Rows that hold a caption."""
        return min(self.count, len(self.ids))

    def draw_until(self, count: int) -> None:
        """Draw captions until `count` were drawn in all, into the places of the oldest."""
        size = len(self.ids)
        numbers = range(max(self.count, count - size), count)
        if not numbers:
            return
        clips = [self._clip(number) for number in numbers]
        rows = torch.tensor([number % size for number in numbers], device=self.ids.device)
        self.ids[rows] = byte_tokens.encode_batch(c.caption for c in clips).to(self.ids.device)
        self.targets[rows] = torch.tensor([attribute_targets(c) for c in clips], device=self.ids.device)
        self.count = count

    def _clip(self, number: int) -> Clip:
        person_index, clip_index = divmod(number, PER_PERSON)
        return clip(person(self.split[(self.start + person_index) % len(self.split)]), 1000 + clip_index, 2)


class AttentionProbe(nn.Module):
    """Embeddings (B, L, D) → the logits of every attribute's classes; attention pooling with one query each."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.Linear(width, len(ATTRIBUTES))
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(options)) for options in ATTRIBUTES.values())

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        pooled = (
            self.attention(embeddings).float().softmax(1).mT.to(embeddings.dtype) @ embeddings
        )  # (B, attributes, D)
        return [head(pooled[:, i]).float() for i, head in enumerate(self.heads)]


@dataclass(frozen=True, eq=False)
class TextBatch(Batch):
    """Captions.

    Attributes:
        ids: (B, L); targets: (B, attributes), their classes as in `attribute_targets`.
    """

    ids: Tensor
    targets: Tensor


class TextObjective(nn.Module):
    """Mean cross entropy over the attributes."""

    def __init__(self, text: nn.Module, probe: AttentionProbe):
        super().__init__()
        self.text, self.probe = text, probe

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        logits = self.probe(self.text(input_ids=batch.ids).last_hidden_state)
        losses = [F.cross_entropy(x, batch.targets[:, i]) for i, x in enumerate(logits)]
        return {"loss": torch.stack(losses).mean()}


class TextStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.options: TextOptions = self.settings.options
        seed = self.settings.seed + 17 * context.rank
        size = 2 * self.options.prefill
        self.corpus = Corpus(size, TRAIN, (500_009 + seed * 100_003) % len(TRAIN), context.device)
        self.validation = Corpus(min(1000, size), VALIDATION, 0, context.device)
        text = trainable(context.model.text)
        self.objective = TextObjective(text, AttentionProbe(text.config.d_model).to(context.device))

    def batch(self, step: int, generator: torch.Generator) -> TextBatch:
        self.corpus.draw_until(self.options.prefill + self.options.new_per_step * step)
        rows = data.randint(generator, self.corpus.filled, self.settings.batch)
        return TextBatch(self.corpus.ids[rows], self.corpus.targets[rows])

    def validate(self) -> dict[str, float]:
        """Accuracy of every attribute on captions of validation people."""
        validation = self.validation
        validation.draw_until(len(validation.ids))
        with evaluating(self.objective), self.context.autocast():
            logits = self.objective.probe(self.objective.text(input_ids=validation.ids).last_hidden_state)
        accuracy = [(x.argmax(1) == validation.targets[:, i]).float().mean().item() for i, x in enumerate(logits)]
        return dict(zip(ATTRIBUTES, accuracy, strict=True))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["text_encoder"])
