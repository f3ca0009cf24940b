"""Stage text: captions → what they say, so that the byte encoder knows words before the DiT asks it for pictures.

The heads that it learns with are thrown away.
"""

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
QUESTIONS: dict[str, tuple[str, ...]] = {
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
"""What a caption is asked → what it may answer; answer 0 is that it does not say."""
AGES = {"young": "young", "middle-aged": "middle-aged", "old": "old", "elderly": "old", "older": "old"}
PER_PERSON = 4  # captions


def answers(made: Clip) -> list[int]:
    """What a clip's caption says to each of `QUESTIONS`: 0, or the number of the answer from 1."""
    text, labels = made.caption.lower(), made.labels
    words = text.replace(",", " ").replace(".", " ").replace(":", " ").split()
    said = {name: getattr(labels, name) for name in stated_labels(text, labels)}
    said = {name: "yes" if value is True else value for name, value in said.items()}
    if {"she", "her", "woman"} & set(words):
        said["sex"] = "female"
    elif {"he", "his", "man"} & set(words):
        said["sex"] = "male"
    said |= dict([("age", AGES[word]) for word in words if word in AGES][:1])
    # "brown hair" is in "dark brown hair" as well: the longest name is the right one
    names = [name for name in HAIR_COLOURS if f"{name} hair" in text]
    said |= {"hair": max(names, key=len)} if names else {}
    return [1 + options.index(said[name]) if name in said else 0 for name, options in QUESTIONS.items()]


class Corpus:
    """A ring of captions: ids (N, 226) int64 and answers (N, questions) int64, drawn by number.

    Args:
        size: N; split: seeds of the people; start: which comes first.
    """

    def __init__(self, size: int, split: range, start: int, device: torch.device):
        self.split, self.start, self.count = split, start, 0
        self.ids = torch.zeros(size, byte_tokens.TOKENS, dtype=torch.int64, device=device)
        self.answers = torch.zeros(size, len(QUESTIONS), dtype=torch.int64, device=device)

    @property
    def filled(self) -> int:
        """Rows that hold a caption."""
        return min(self.count, len(self.ids))

    def reach(self, count: int) -> None:
        """Draw captions until `count` were drawn in all, into the places of the oldest."""
        size = len(self.ids)
        numbers = range(max(self.count, count - size), count)
        if not numbers:
            return
        drawn = [self._clip(number) for number in numbers]
        rows = torch.tensor([number % size for number in numbers], device=self.ids.device)
        self.ids[rows] = byte_tokens.encode_batch(c.caption for c in drawn).to(self.ids.device)
        self.answers[rows] = torch.tensor([answers(c) for c in drawn], device=self.ids.device)
        self.count = count

    def _clip(self, number: int) -> Clip:
        who, which = divmod(number, PER_PERSON)
        return clip(person(self.split[(self.start + who) % len(self.split)]), 1000 + which, 2)


class Reader(nn.Module):
    """Embeddings (B, L, D) → for every question the logits of its answers; each looks at tokens of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.looks = nn.Linear(width, len(QUESTIONS))
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(options)) for options in QUESTIONS.values())

    def forward(self, words: Tensor) -> list[Tensor]:
        seen = self.looks(words).float().softmax(1).mT.to(words.dtype) @ words  # (B, questions, D)
        return [head(seen[:, i]).float() for i, head in enumerate(self.heads)]


class TextObjective(nn.Module):
    """Mean cross entropy over the questions."""

    def __init__(self, text: nn.Module, reader: Reader):
        super().__init__()
        self.text, self.reader = text, reader

    def forward(self, ids: Tensor, answers: Tensor) -> dict[str, Tensor]:
        """ids (B, L), answers (B, questions)."""
        logits = self.reader(self.text(input_ids=ids).last_hidden_state)
        losses = [F.cross_entropy(x, answers[:, i]) for i, x in enumerate(logits)]
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
        self.objective = TextObjective(text, Reader(text.config.d_model).to(context.device))

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        self.corpus.reach(self.options.prefill + self.options.new_per_step * step)
        rows = data.randint(generator, self.corpus.filled, self.settings.batch)
        return {"ids": self.corpus.ids[rows], "answers": self.corpus.answers[rows]}

    def validate(self) -> dict[str, float]:
        """For every question the share of captions of other people that are read rightly."""
        held = self.validation
        held.reach(len(held.ids))
        with evaluating(self.objective), self.context.autocast():
            logits = self.objective.reader(self.objective.text(input_ids=held.ids).last_hidden_state)
        right = [(x.argmax(1) == held.answers[:, i]).float().mean().item() for i, x in enumerate(logits)]
        return dict(zip(QUESTIONS, right, strict=True))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["text_encoder"])
