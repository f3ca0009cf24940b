"""What frozen networks see in the pool's photos, cached: it does not change while identity is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from .pool import Pool
from .stage import Batch

PART = 128  # photos at a time
RENEWAL = 16  # of so many batches one has its photos looked at anew, placed and damaged in another way
"""A look is some 670 small kernels, however few the photos, and copies constants to the GPU, for which the CPU waits
until all that is queued there is done: too much for every batch."""


class References:
    """What is seen in every photo of a pool, by name.

    Args:
        encode: pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → tensors (B, …), in the dtype to keep them in.
    """

    def __init__(self, pool: Pool, encode: Callable[[Tensor, Tensor], Batch]):
        self.pool, self._encode = pool, encode
        self._chunks = self._batches = 0
        self._cache: Batch = {}

    def of(self, people: Tensor, photos: Tensor) -> Batch:
        """People (B,) and which photo of each (B,) → what is seen in them, (B, …) each, float32."""
        self._catch_up()
        if self._batches % RENEWAL == 0:
            self._refresh(people[:PART], photos[:PART])
        self._batches += 1
        return {name: x[people, photos].float() for name, x in self._cache.items()}

    def _catch_up(self) -> None:
        """Look at the photos of people who came into the pool since the last time."""
        pool, each = self.pool, self.pool.settings.people
        for slot in pool.new_slots(self._chunks):
            people = slot * each + torch.arange(each, device=pool.device)
            photos = torch.arange(pool.stills.shape[1], device=pool.device)
            who, which = people.repeat_interleave(len(photos)), photos.repeat(each)
            for part in torch.arange(len(who), device=pool.device).split(PART):
                self._refresh(who[part], which[part])
        self._chunks = pool.count

    def _refresh(self, people: Tensor, photos: Tensor) -> None:
        pool = self.pool
        for name, seen in self._encode(pool.stills[people, photos], pool.still_landmarks[people, photos]).items():
            if name not in self._cache:
                self._cache[name] = seen.new_zeros(*pool.stills.shape[:2], *seen.shape[1:])
            self._cache[name][people, photos] = seen
