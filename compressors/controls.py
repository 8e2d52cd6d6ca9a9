"""What the controls share: they look at nothing, so they can stand wherever tokens form a row."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.base import Reducer, scaled


@dataclass(frozen=True)
class Control(Reducer):
    """A control at `outside` and at `prefill`, there in one early layer.

    Args:
        layer: at `prefill`, tokens are gone before this layer, as (number, depth of the paper's model): FastV's place.
    """

    stages = ("outside", "prefill")
    paper = "none (control)"
    fidelity = "reference"

    layer: tuple[int, int] = (2, 32)

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        """See `Compressor.sites`."""
        return [(scaled(self.layer, depth), count)]
