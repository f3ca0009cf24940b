"""A folder of real clips as a source of identity batches: NAME.mp4 beside NAME.txt, its caption; one person in each.

A clip is read when it is first drawn. What training needs of it then stays in host memory: for the 5B about 10 MB.
"""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.errors import TrainingError
from fantasyid_core.optional_import import require

from . import data
from .clip_files import SUFFIXES, find_clips
from .identity_batch import Clips, ReferenceCrops, ValidationClips
from .options import IdentityOptions
from .prepared_clip import PreparedClip, prepare_clip
from .stage import Context
from .vocabulary import tokenizer

log = logging.getLogger(__name__)
HELD_OUT = 2  # clips at most that are looked at but not trained on
EXPECTED = "Expected pairs of NAME.mp4, which shows one person's face, and NAME.txt, its caption"


class FolderSource:
    """Identity batches from the folder `options.data`.

    Every clip has one window of the model's frames, at a place that its name and the run's seed decide. With
    `multi_view` the references come from the rest of the clip, where that shows a face. Clips that cannot be used are
    named in the log and left out. Of those that can, the last by name, two at most, are held out for validation.

    Raises:
        TrainingError: no clip of the folder can be used.
        WeightsMissingError, PackageMissingError: the text encoder's vocabulary or a package is missing.
    """

    def __init__(self, context: Context, options: IdentityOptions):
        require("av", "Training on clips")
        self.context, self.options = context, options
        self.dtype = torch.bfloat16 if context.bf16 else torch.float32
        self.ids = tokenizer(context.model)
        self._prepared: dict[Path, PreparedClip | None] = {}
        self._reasons: list[str] = []
        folder = Path(options.data)
        found = find_clips(folder)
        first = next((i for i, path in enumerate(found) if self._clip(path) is not None), None)
        if first is None:
            nothing = f"it holds no {' or '.join(SUFFIXES)}" if folder.is_dir() else "there is no such folder"
            raise TrainingError(
                f"No clip of '{folder}' can be trained on: {'; '.join(self._reasons[:4]) or nothing}. {EXPECTED}."
            )
        last = itertools.islice((i for i in range(len(found) - 1, first, -1) if self._clip(found[i])), HELD_OUT)
        held_out = sorted(last)
        self.clips = found[first : held_out[0] if held_out else first + 1]
        self.held_out = [self._clip(found[i]) for i in held_out]
        if not self.held_out:
            log.info("No clip is left for validation; the one that is trained on serves.")
            self.held_out = [self._clip(found[first])]
        self.empty_text = self._embed_text("")

    def batch(self, step: int, count: int, generator: torch.Generator) -> Clips:
        """See `identity.Source`."""
        clips = [self._draw_clip(row, generator) for row in data.randint(generator, len(self.clips), count).tolist()]
        views = [int(x * len(c.crops)) for x, c in zip(data.rand(generator, count).tolist(), clips, strict=True)]
        dropped = (data.rand(generator, count) < self.options.text_dropout).tolist()
        text = [self.empty_text if drop else clip.text for drop, clip in zip(dropped, clips, strict=True)]
        return self._collate(clips, views, text)

    def validation(self) -> ValidationClips:
        """See `identity.Source`: the clips that are held out, each with its first reference."""
        clips, device = self.held_out, self.context.device
        truth = torch.stack([clip.middle for clip in clips]).to(device).float() / 255
        batch = self._collate(clips, [0] * len(clips), [clip.text for clip in clips])
        return ValidationClips(**vars(batch), empty_text=self.empty_text[None].to(device), truth=truth)

    def _collate(self, clips: Sequence[PreparedClip], views: Sequence[int], text: Sequence[Tensor]) -> Clips:
        pairs = list(zip(clips, views, strict=True))
        batch = Clips(
            latents=torch.stack([clip.latents for clip in clips]).float(),
            face_mask=torch.stack([clip.face_mask for clip in clips]),
            text=torch.stack(list(text)),
            reference=ReferenceCrops(
                crops=torch.stack([clip.crops[i] for clip, i in pairs]).float() / 255,
                vertices=torch.stack([clip.vertices[i] for clip, i in pairs]),
            ),
        )
        return batch.to(self.context.device)

    def _draw_clip(self, row: int, generator: torch.Generator) -> PreparedClip:
        """The clip at `row`, or where that cannot be used one that is drawn again: every usable one is as likely."""
        while (clip := self._clip(self.clips[row])) is None:
            row = int(data.randint(generator, len(self.clips), 1))
        return clip

    def _clip(self, path: Path) -> PreparedClip | None:
        if path not in self._prepared:
            try:
                self._prepared[path] = prepare_clip(path, self.context, self.options, self._embed_text, self.dtype)
            except TrainingError as error:
                log.warning("%s is left out: %s.", path.name, error)
                self._reasons.append(f"{path.name}: {error}")
                self._prepared[path] = None
        return self._prepared[path]

    def _embed_text(self, text: str) -> Tensor:
        """Embeddings (L, D) of a text."""
        return self.context.embed_text(self.ids(text).to(self.context.device))[0].to("cpu", self.dtype)
