"""Frozen networks' features of the pool's photos, cached: they do not change while identity is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from .pool import Pool
from .stage import Batch

BATCH = 128  # photos at a time
REFRESH_EVERY = 16  # batches between two in which photos are encoded again, with another jitter and damage
"""Encoding takes some 670 small kernels, however few the photos, and copies constants to the GPU, for which the CPU
waits until all that is queued there is done: too much for every batch."""


class References:
    """Features of every photo of a pool, by name.

    Args:
        encode: pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → tensors (B, …), in the dtype to keep them in.
    """

    def __init__(self, pool: Pool, encode: Callable[[Tensor, Tensor], Batch]):
        self.pool, self._encode = pool, encode
        self._chunks = self._batches = 0
        self._cache: Batch = {}

    def of(self, people: Tensor, photos: Tensor) -> Batch:
        """People (B,) and which photo of each (B,) → their features, (B, …) each, float32."""
        self._encode_new()
        if self._batches % REFRESH_EVERY == 0:
            self._refresh(people[:BATCH], photos[:BATCH])
        self._batches += 1
        return {name: x[people, photos].float() for name, x in self._cache.items()}

    def _encode_new(self) -> None:
        """Encode the photos of people who came into the pool since the last time."""
        pool, each = self.pool, self.pool.settings.people
        for slot in pool.new_slots(self._chunks):
            people = slot * each + torch.arange(each, device=pool.device)
            photos = torch.arange(pool.stills.shape[1], device=pool.device)
            rows, columns = people.repeat_interleave(len(photos)), photos.repeat(each)
            for batch in torch.arange(len(rows), device=pool.device).split(BATCH):
                self._refresh(rows[batch], columns[batch])
        self._chunks = pool.count

    def _refresh(self, people: Tensor, photos: Tensor) -> None:
        pool = self.pool
        for name, encoded in self._encode(pool.stills[people, photos], pool.still_landmarks[people, photos]).items():
            if name not in self._cache:
                self._cache[name] = encoded.new_zeros(*pool.stills.shape[:2], *encoded.shape[1:])
            self._cache[name][people, photos] = encoded
