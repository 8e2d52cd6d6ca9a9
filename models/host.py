"""The contract of hosts: a multimodal model, opened so that it can be run stage by stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch

from foveate.compressors.base import Compressor, Grid, InputKnob, KVReducer, Reducer, Resampler
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models.errors import CountMismatch
from foveate.plans.cost import HostShape
from foveate.plans.plan import Plan

if TYPE_CHECKING:
    from foveate.models.inputs import Picture
    from foveate.models.ledger import Ledger
    from foveate.models.passes import Pass

BASES: dict[str, tuple[type[Compressor], ...]] = {
    "input": (InputKnob,),
    "encoder": (Reducer,),
    "outside": (Reducer,),
    "projector": (Reducer, Resampler),
    "prefill": (Reducer,),
    "decode": (KVReducer,),
}
"""Which bases can act at a stage."""


@dataclass(frozen=True)
class Score:
    """One row's accepted answers under the compressed cache.

    Attributes:
        logprob: natural logarithm of each answer's probability, end token included.
        greedy: whether greedy decoding gives exactly this answer (arg-max right at every position, the end included).
    """

    logprob: list[float]
    greedy: list[bool]


class Host(ABC):
    """A multimodal model, opened.

    Attributes:
        name: as it was loaded.
        fingerprint: SHA-256 over configuration and a sample of the weights.
        shape: for the cost model.
        grid: of the visual tokens of an uncompressed picture.
        signals: kinds that it can give.
        device: where it runs.
        encoder_depth, decoder_depth: blocks and layers that run.
    """

    name: str
    fingerprint: str
    shape: HostShape
    grid: Grid
    signals: frozenset[str]
    device: torch.device
    encoder_depth: int
    decoder_depth: int

    @abstractmethod
    def open(self, images: Sequence[Picture], questions: Sequence[str]) -> Pass:
        """A pass over rows of one picture and one question each; nothing has run.

        Raises:
            BadInput: a picture that does not decode, a question that cannot be put; the message names the row.
        """

    @property
    def n_visual(self) -> int:
        """Visual tokens of an uncompressed picture."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def depth(self, stage: str) -> int:
        """The depth that methods at a stage are told: decoder layers at `prefill` and `decode`, else encoder blocks."""
        return self.decoder_depth if stage in ("prefill", "decode") else self.encoder_depth

    def resized(self, knob: InputKnob, count: int) -> Grid:
        """The grid that an input knob wants. Raises: CountMismatch where it has more tokens than asked."""
        grid = knob.target(self.grid, count)
        if grid[0] != self.grid[0] or min(grid) < 1 or grid[0] * grid[1] * grid[2] > count:
            raise CountMismatch(f"{knob.name}: grid {grid} for at most {count} tokens of {self.grid}")
        return grid

    def sites(self, stage: str, method: Compressor | None, n: int, count: int) -> list[tuple[int, int]]:
        """Where a method acts inside the tower or the decoder, checked; nothing for None.

        Raises:
            CountMismatch: layers out of order or range (a cut in the decoder comes before layer 1 at the earliest), or
                counts that grow.
        """
        if method is None:
            return []
        sites, depth, first = method.sites(n, count, self.depth(stage)), self.depth(stage), int(stage == "prefill")
        layers, left = [layer for layer, _ in sites], [n, *(c for _, c in sites)]
        ordered = layers == sorted(set(layers)) and left == sorted(left, reverse=True) and left[-1] >= 1
        if not sites or not ordered or not first <= layers[0] <= layers[-1] < depth:
            limits = f"layers are {first}..{depth - 1}, ascending, counts falling"
            raise CountMismatch(f"{method.name}: sites {sites} for {n} tokens; {limits}")
        return sites

    def supports(self, stage: str, name: str) -> str | None:
        """Why a method cannot run here, or None where it can. "none" and "blind" always can."""
        if name == "none" or (name == "blind" and stage == "input"):
            return None
        cls = COMPRESSORS.get((stage, name))
        if cls is None:
            near = get_close_matches(name, [n for s, n in COMPRESSORS if s == stage], n=3)
            return f"no method {name!r} at stage {stage!r}" + (f"; near: {', '.join(near)}" if near else "")
        if not issubclass(cls, BASES[stage]):
            return f"{name}: a {cls.__mro__[1].__name__} cannot act at {stage!r} in this host"
        if cls.modality == "video" and self.grid[0] == 1:
            return f"{name}: is for video, this host sees single pictures"
        if cls.learned:
            return f"{name}: has no weights for this host"
        missing = {s.kind for s in make(stage, name).signals(self.depth(stage))} - self.signals
        return f"{name}: needs the signal {', '.join(sorted(missing))}, which this host has not" if missing else None

    def forecast(self, plan: Plan, n_text: int, new_tokens: int = 0, turns: int = 1) -> Ledger:
        """What a pass by this plan will cost, known before acting; adaptive methods at their ceiling.

        Args:
            plan: which methods at which ratios.
            n_text: prompt entries that are text (`Pass.n_text` of a row).
            new_tokens: tokens generated, the end token included; 0 = none.
            turns: questions about the picture, all of this length: what no question guides runs once.
        Raises:
            ValueError: a method that this host cannot run, or a count that it cannot give.
        """
        from foveate.models.forecast import forecast  # it needs this module's classes

        return forecast(self, plan, n_text, new_tokens, turns)
