"""What became of a row, in one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from foveate.compressors.base import Grid
from foveate.models.host import Host
from foveate.models.inputs import Row
from foveate.models.ledger import Ledger, charge_answers
from foveate.models.passes import Pass
from foveate.models.prompt import joined
from foveate.plans.plan import UNCOMPRESSED, Choice, Plan


@dataclass(frozen=True)
class Record:
    """What became of one row.

    Attributes:
        plan: what was done.
        reason: "policy" or "regression" (by the controller); "none" (nothing to decide); or why the row was not decided
            on: "mask", "shape", "nan", "outside", "error" (see `controller.decision.REASONS`), "budget" (no plan within
            `max_flops`), "deadline", "compressor" (an exception on the way), "unsupported" (not the gate's kind of
            request).
        decisions: (stage, choice, reason) in order.
        ledger: of the row, answer included; None for an unsupported request.
        full: FLOPs of the uncompressed pass with as long an answer; 0 for an unsupported request.
        layers: visual tokens in each decoder layer.
        kept: of each view, the grid of those of its tokens that the prompt shows and the positions of what is left of
            them in the last decoder layer; None where that is not known.
        seconds: what deciding took, features included, shared equally by the rows of a call.
        why: of an unsupported request, what the gate could not take, in one line.
    """

    plan: Plan
    reason: str
    decisions: tuple[tuple[str, Choice, str], ...] = ()
    ledger: Ledger | None = None
    full: int = 0
    layers: tuple[int, ...] = ()
    kept: tuple[tuple[Grid, tuple[int, ...]], ...] | None = field(default=None, repr=False)
    seconds: float = 0.0
    why: str = ""

    @property
    def share(self) -> float:
        """FLOPs as a share of the uncompressed pass; 1 where nothing is known."""
        return self.ledger.total / self.full if self.ledger is not None else 1.0

    @property
    def decision_share(self) -> float:
        """FLOPs of features and controller as a share of the uncompressed pass."""
        if self.ledger is None:
            return 0.0
        stages = self.ledger.by_stage()
        return (stages.get("features", 0) + stages.get("controller", 0)) / self.full


def record_of(
    p: Pass,
    row: int,
    plan: Plan,
    reason: str,
    decisions: tuple[tuple[str, Choice, str], ...] = (),
    seconds: float = 0.0,
) -> Record:
    """The record of a row of a pass whose answer has been generated."""
    full = uncompressed(p.host, p.rows[row], p.ran[row]).total
    layers = tuple(p.counts["layers"][row])
    return Record(plan, reason, decisions, p.ledger[row], full, layers, kept_of(p, row), seconds)


def uncompressed(host: Host, row: Row, ran: Sequence[int]) -> Ledger:
    """What a row costs uncompressed, with sequences of so many tokens behind its prompt."""
    ledger = host.forecast(UNCOMPRESSED, row.shape)
    entries = [len(row.ids)] * host.decoder_depth
    charge_answers(ledger, host.shape, entries, ran)
    return ledger


def kept_of(p: Pass, row: int) -> tuple[tuple[Grid, tuple[int, ...]], ...] | None:
    """See `Record.kept`, of a pass behind `prefill`; None where a method put all views' tokens on a grid of its own."""
    stream, grids = p.opened.stream, [state.grid for state in p.of_row("projector", row)]
    positions = stream.position[row][stream.visual[row]].cpu().numpy()
    if len(grids) == 1:
        return ((p.opened.grids[row], tuple(positions.tolist())),)
    if p.opened.grids[row] != joined(grids, True)[0]:
        return None
    ends = np.cumsum([t * h * w for t, h, w in grids])
    inside = ((positions >= end - t * h * w) & (positions < end) for end, (t, h, w) in zip(ends, grids, strict=True))
    found = (positions[at] - (end - t * h * w) for at, end, (t, h, w) in zip(inside, ends, grids, strict=True))
    return tuple((grid, tuple(at.tolist())) for grid, at in zip(grids, found, strict=True))
