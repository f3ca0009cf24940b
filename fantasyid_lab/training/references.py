"""Frozen networks' features of the pool's photos, cached: they do not change while identity is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from .identity_batch import Reference
from .pool import Pool

BATCH = 128  # photos at a time
REFRESH_EVERY = 16  # batches between two in which photos are encoded again, with another jitter and damage
"""Encoding takes some 670 small kernels, however few the photos, and copies constants to the GPU, for which the CPU
waits until all that is queued there is done: too much for every batch."""


class References:
    """Features of every photo of a pool.

    Args:
        encode: pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → their features, in the dtype to keep them in.
    """

    def __init__(self, pool: Pool, encode: Callable[[Tensor, Tensor], Reference]):
        self.pool, self._encode = pool, encode
        self._chunks = self._batches = 0
        self._cache: Reference | None = None  # (P, S, …), of photo S of person P

    def of(self, people: Tensor, photos: Tensor) -> Reference:
        """People (B,) and which photo of each (B,) → their features, float32."""
        self._encode_new()
        if self._batches % REFRESH_EVERY == 0:
            self._refresh(people[:BATCH], photos[:BATCH])
        self._batches += 1
        return self._cache.map(lambda x: x[people, photos].float())

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
        encoded = self._encode(pool.stills[people, photos], pool.still_landmarks[people, photos])
        if self._cache is None:
            self._cache = encoded.map(lambda x: x.new_zeros(*pool.stills.shape[:2], *x.shape[1:]))
        for name, x in encoded.tensors.items():
            self._cache.tensors[name][people, photos] = x
