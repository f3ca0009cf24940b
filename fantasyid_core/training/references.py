"""What tower and regressor see in the pool's photos, kept: they do not change while identity is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from .pool import Pool

PART = 128  # photos at a time
RENEWED = 8  # one of so many photos of a batch is looked at anew, placed and damaged in another way


class References:
    """Hidden states of the tower and vertices of the regressor for every photo of a pool.

    Args:
        see: pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → hidden states (B, 1 + N, D), vertices (B, V, 3).
    """

    def __init__(self, pool: Pool, see: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.pool, self._see = pool, see
        self._chunks = 0
        self._hidden: Tensor | None = None
        self._vertices: Tensor | None = None

    def of(self, people: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
        """People (B,) and which photo of each (B,) → hidden states (B, 1 + N, D), vertices (B, V, 3), float32."""
        self._catch_up()
        renewed = slice(0, max(1, len(people) // RENEWED))
        self._look(people[renewed], photos[renewed])
        return self._hidden[people, photos].float(), self._vertices[people, photos].float()

    def _catch_up(self) -> None:
        """Look at the photos of people who came into the pool since the last time."""
        pool, each = self.pool, self.pool.settings.people
        for chunk in range(max(self._chunks, pool.count - pool.slots), pool.count):
            people = (chunk % pool.slots) * each + torch.arange(each, device=pool.device)
            photos = torch.arange(pool.stills.shape[1], device=pool.device)
            who, which = people.repeat_interleave(len(photos)), photos.repeat(each)
            for part in torch.arange(len(who), device=pool.device).split(PART):
                self._look(who[part], which[part])
        self._chunks = pool.count

    def _look(self, people: Tensor, photos: Tensor) -> None:
        pool = self.pool
        seen = self._see(pool.stills[people, photos], pool.still_landmarks[people, photos])
        if self._hidden is None:
            kept = torch.bfloat16 if pool.device.type == "cuda" else torch.float32
            shape = pool.stills.shape[:2]
            self._hidden = torch.zeros(*shape, *seen[0].shape[1:], dtype=kept, device=pool.device)
            self._vertices = torch.zeros(*shape, *seen[1].shape[1:], device=pool.device)
        self._hidden[people, photos], self._vertices[people, photos] = seen[0].to(self._hidden), seen[1]
