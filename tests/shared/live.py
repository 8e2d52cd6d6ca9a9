"""What lies in memory at most while something runs: tensors as torch makes them, and arrays as numpy does."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until the last tensor on it is gone.

    Attributes:
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, int] = {}  # storage -> tensors on it
        self._known: set[int] = set()  # tensors, in place operations return theirs again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self._place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.device.type == "cpu" and id(each) not in self._known:
                self._count(each, self._place(each) in given)
        return out

    @staticmethod
    def _place(x: torch.Tensor) -> int:
        return x.untyped_storage().data_ptr()

    def _count(self, x: torch.Tensor, view: bool) -> None:
        place, size = self._place(x), x.untyped_storage().nbytes()
        if place not in self._held:
            if view:  # of a weight, or of an array that numpy counts
                return
            self._held[place] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._held[place] += 1
        self._known.add(id(x))
        weakref.finalize(x, self._gone, id(x), place, size).atexit = False

    def _gone(self, name: int, place: int, size: int) -> None:
        self._known.discard(name)
        self._held[place] -= 1
        if not self._held[place]:
            del self._held[place]
            self.now -= size


def tensor_peak(call: Callable[[], Any]) -> int:
    """Bytes of tensors that a call needs at most, beside what was there."""
    with Live() as live:
        call()
    return live.peak


def array_peak(call: Callable[[], Any]) -> int:
    """The same of Python's and numpy's own memory: the two are measured apart, together they take ten times as long."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
