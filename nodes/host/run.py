"""What our nodes put into a MODEL's `transformer_options`, under one key, and what one sampling run keeps there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...fantasyid_core.dit.compiling import uncompiled
from ...fantasyid_core.dit.injection import Injection, InjectionRun
from ...fantasyid_core.dit.kernels import Rotary
from ...fantasyid_core.dit.step_cache import Cached, CacheSettings, StepCaches
from ...fantasyid_core.dit.transformer import FantasyIDTransformer
from .compat import cast_weights

KEY = "fantasyid"


class Run:
    """What is constant over one sampling run, computed once. Make a new one for every run.

    Args:
        injections: the identities.
        step_cache: settings of the step cache; None computes all.
        negative_injections: those of the negative prompt's own model; None: it has no model of its own.
        card: the one that decides which steps are skipped, where ComfyUI uses several; None where it uses one.
        keep: False where ComfyUI changes weights in the middle of a run; then nothing that depends on them is kept.
        frames: latent frames of the whole video; None: as many as a prediction has.
    """

    def __init__(
        self,
        injections: tuple[Injection, ...] = (),
        step_cache: CacheSettings | None = None,
        negative_injections: tuple[Injection, ...] | None = None,
        card: torch.device | None = None,
        keep: bool = True,
        frames: int | None = None,
    ):
        self.frames = frames
        self._injections = InjectionRun(injections, keep)
        self._negative = None if negative_injections is None else InjectionRun(negative_injections, keep)
        self._step_caches = None if step_cache is None else StepCaches(step_cache)
        self._card = card
        self._keep = keep
        self._norms: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._rotary: dict[tuple, Rotary | None] = {}

    def injections(self, unconditional: Sequence[bool]) -> InjectionRun:
        """The identities of a batch, of whose parts these are unconditional branches."""
        alone = bool(unconditional) and all(unconditional)
        return self._negative if alone and self._negative is not None else self._injections

    @property
    def skips_steps(self) -> bool:
        """Whether there is a step cache."""
        return self._step_caches is not None

    def step_cache(self, window: tuple[int, ...], card: torch.device | None = None) -> Cached | None:
        """That of a context window, for the card that asks; None computes all."""
        if self._step_caches is None:
            return None
        return self._step_caches.of(window, decides=card is None or card == self._card)

    def go_on(self, earlier: "Run") -> None:
        """Take over the step cache of the run that stopped where this one begins."""
        self._step_caches = earlier._step_caches

    def report(self) -> str | None:
        """For the log: how many steps were skipped; None without a step cache."""
        return None if self._step_caches is None else self._step_caches.report()

    def norm_weights(self, norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
        """As `cast_weights`. Streaming tensors so small anew for every block would wait for the card."""
        if torch.compiler.is_compiling() or not self._keep:
            return cast_weights(norm, like)
        key = (norm, like.device, like.dtype)
        if key not in self._norms:
            self._norms[key] = cast_weights(norm, like)
        return self._norms[key]

    @uncompiled
    def rotary(self, transformer: FantasyIDTransformer, x: Tensor, rope: Mapping[str, float]) -> Rotary | None:
        """Rotary positions of latents (B, C, T, H, W), moved as ComfyUI's `rope_options` say."""
        scale, shift = (
            (float(rope.get(f"{what}_t", none)), float(rope.get(f"{what}_y", none)), float(rope.get(f"{what}_x", none)))
            for what, none in (("scale", 1.0), ("shift", 0.0))
        )
        frames, height, width = x.shape[2:]
        key = (frames, height, width, x.device, scale, shift)
        if key not in self._rotary:
            self._rotary[key] = transformer.rotary_embedding(frames, height, width, x.device, scale=scale, shift=shift)
        return self._rotary[key]


@dataclass(frozen=True, eq=False)
class Options:
    """Everything of ours in `transformer_options`.

    Attributes:
        injections: the identities of Apply FantasyID.
        fp8: FantasyID Faster's 8-bit products.
        step_cache: FantasyID Faster's step cache; None computes all steps.
        run: the sampling run that is under way; None outside of one.
    """

    injections: tuple[Injection, ...] = ()
    fp8: bool = False
    step_cache: CacheSettings | None = None
    run: Run | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Options":
        return self  # nothing in it changes: clones of a MODEL share it

    @classmethod
    def of(cls, transformer_options: Mapping) -> "Options":
        """Those of a MODEL or of a call; defaults where there are none."""
        return transformer_options.get(KEY) or cls()
