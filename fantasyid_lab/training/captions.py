"""What a frozen text encoder makes of the pool's captions, cached."""

from collections.abc import Callable

import torch
from torch import Tensor

from .pool import Pool


class Captions:
    """Text embeddings of a pool's captions.

    Args:
        read: ids (B, L) → embeddings (B, L, D).
    """

    def __init__(self, pool: Pool, embed_text: Callable[[Tensor], Tensor]):
        self.pool, self._embed_text = pool, embed_text
        self._chunks = 0
        self._cache: Tensor | None = None

    def of(self, rows: Tensor) -> Tensor:
        """Rows (B,) of the pool's `caption` → embeddings (B, L, D) float32; those of new ones are made first."""
        pool = self.pool
        for slot in pool.new_slots(self._chunks):
            for captions in pool.captions_of(slot):
                self._put(captions)
        self._chunks = pool.count
        return self._cache[rows].float()

    @torch.no_grad()
    def _put(self, rows: slice) -> None:
        pool = self.pool
        embeddings = self._embed_text(pool.caption[rows].long())
        if self._cache is None:
            cache_dtype = torch.bfloat16 if pool.device.type == "cuda" else torch.float32
            self._cache = torch.zeros(len(pool.caption), *embeddings.shape[1:], dtype=cache_dtype, device=pool.device)
        self._cache[rows] = embeddings.to(self._cache)
