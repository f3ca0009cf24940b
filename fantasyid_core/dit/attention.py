"""PyTorch's own attention, and which of its kernels is the fastest on a card.

Which one depends on card, type and length: on an H100 cuDNN's takes 17 ms a block of 49 × 480 × 720 where flash takes
24. PyTorch and the programs on it ask for them in a fixed order, so it is measured.
"""

import inspect
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger(__name__)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Shape = tuple[int, int, int, int]
Timer = Callable[[SDPBackend, Shape, torch.dtype, torch.device], float | None]

BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
CLEARLY = 0.9  # of the first one's time: near ties would be drawn anew in every process, and the last bits with them
SHORTEST = 2048  # tokens; below, attention is a small part of a block
HEADS = 8  # fill a card at such lengths; all of them would need hundreds of MiB
REPEATS = 5


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys, values (B, H, L, D) → (B, L, H · D)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _KernelOrder:
    """Which kernels PyTorch's attention tries, and in which order: one setting for the whole process.

    With several GPUs there is a thread for each. Those that want the same order share it; one that wants another waits
    until they have left it. Not to be nested.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._order: tuple[SDPBackend, ...] = ()
        self._users = 0
        self._restore = ExitStack()

    @contextmanager
    def of(self, *order: SDPBackend) -> Iterator[None]:
        """In this context these kernels are tried, in this order; none: PyTorch's own."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._order == order)
            if not self._users and order:
                self._restore.enter_context(sdpa_kernel(list(order), **_PRIORITY))
            self._order = order
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    self._restore.close()
                    self._changed.notify_all()


_PRIORITY = {"set_priority": True} if "set_priority" in inspect.signature(sdpa_kernel).parameters else {}
_kernels = _KernelOrder()


def in_own_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `scaled_dot_product`, by the kernel that PyTorch chooses, whatever another thread is asking for."""
    with asking_for(None):
        return scaled_dot_product(q, k, v)


def asking_for(backend: SDPBackend | None) -> AbstractContextManager:
    """In this context PyTorch's attention tries `backend` first; None: its own order."""
    if backend is None:
        return _kernels.of()
    others = [other for other in (*BACKENDS, SDPBackend.MATH) if other != backend]
    return _kernels.of(backend, *(others if _PRIORITY else ()))


def fastest(seconds: Mapping[SDPBackend, float | None]) -> SDPBackend | None:
    """The first of `BACKENDS` that ran, or another that is clearly faster than it; None where none ran.

    seconds: time of each; None for one that cannot compute this.
    """
    ran = {backend: time for backend in BACKENDS if (time := seconds.get(backend)) is not None}
    if not ran:
        return None
    first, best = next(iter(ran)), min(ran, key=ran.__getitem__)
    return best if ran[best] < CLEARLY * ran[first] else first


class FastestBackend:
    """Measures once for every device, type and shape, and remembers.

    Args:
        timer: (backend, (B, H, L, D), dtype, device) → seconds, or None where the backend cannot compute that.
    """

    def __init__(self, timer: Timer):
        self._timer = timer
        self._known: dict[tuple, SDPBackend | None] = {}
        self._measuring = threading.Lock()

    def __call__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> SDPBackend | None:
        """The fastest backend for queries, keys and values of this shape; None: leave it to PyTorch."""
        if shape[2] < SHORTEST:
            return None
        key = (shape, dtype, device)
        with self._measuring:
            if key not in self._known:
                self._known[key] = self._measure(*key)
        return self._known[key]

    def _measure(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> SDPBackend | None:
        seconds = {backend: self._timer(backend, shape, dtype, device) for backend in BACKENDS}
        chosen = fastest(seconds)
        timings = ", ".join(f"{b.name} {1000 * s:.1f} ms" for b, s in seconds.items() if s is not None)
        log.info("FantasyID: attention over %d tokens by %s (%s).", shape[2], chosen, timings)
        return chosen


def time_on_gpu(backend: SDPBackend, shape: Shape, dtype: torch.dtype, device: torch.device) -> float | None:
    """Seconds of one sample and a few heads on a GPU; None where the backend cannot compute that. Waits for the GPU."""
    _, heads, tokens, width = shape
    generator = torch.Generator(device).manual_seed(0)  # the global one's state belongs to the samplers
    size = (3, 1, tokens, min(heads, HEADS), width)
    try:
        with _kernels.of(backend), warnings.catch_warnings():  # why a backend cannot is told as a warning
            warnings.simplefilter("ignore")
            q, k, v = torch.randn(size, dtype=dtype, device=device, generator=generator).transpose(2, 3)
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
            scaled_dot_product(q, k, v)  # picks and loads its kernel
            for start, end in events:
                start.record()
                scaled_dot_product(q, k, v)
                end.record()
            events[-1][1].synchronize()
    except RuntimeError:
        return None
    return min(start.elapsed_time(end) for start, end in events) / 1000
