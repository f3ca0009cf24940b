"""Weights of a mapped file in another type, without both in memory at once."""

import bisect
import ctypes
import mmap
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
RELEASE_AT = 1 << 26  # bytes of a file that may be in memory beside what was made of them


def store_as(tensors: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Replace what these tensors hold, one after the other; the pages of the files that they came from are released."""
    replaced, size = [], 0
    for tensor in tensors:
        if tensor.dtype != dtype:
            replaced.append(tensor.data)
            size += tensor.nbytes
            tensor.data = tensor.data.to(dtype)
        if size > RELEASE_AT:
            release(replaced)
            replaced, size = [], 0
    release(replaced)


def release(tensors: Iterable[Tensor]) -> None:
    """Let go of the pages that these tensors occupy, where they lie unaltered in mapped files.

    They stay what they are: who looks at them again reads them from the system's cache or the disk. Linux only;
    elsewhere the system takes the pages back by itself when memory is short, and nothing is done here.
    """
    if sys.platform != "linux":
        return
    files = _mapped_files()
    libc = ctypes.CDLL(None)
    for tensor in tensors:
        start = -(-tensor.data_ptr() // PAGE) * PAGE
        end = (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE
        if start < end and _within(files, start, end):
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that are mapped from files, in order."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name.startswith("/") and not name.startswith("/dev/"):  # not what drivers map
            start, _, end = addresses.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _within(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    at = bisect.bisect_right(ranges, (start, sys.maxsize)) - 1
    return at >= 0 and ranges[at][0] <= start and end <= ranges[at][1]
