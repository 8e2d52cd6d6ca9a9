"""Methods with something changed: other hyperparameters, or one of their parts left out or turned round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from torch import Tensor

from foveate.compressors.base import Compressor, Reduction, Tokens
from foveate.compressors.registry import COMPRESSORS
from foveate.plans.plan import Plan


@dataclass(frozen=True)
class Variant:
    """A method with something changed.

    Attributes:
        stage, method: of the registry.
        said: what is changed, in words; "" = nothing.
        values: hyperparameters.
        parts: attributes and methods of the class in place of its own.
    """

    stage: str
    method: str
    said: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In plans while it is registered."""
        return f"{self.method} ({self.said})" if self.said else self.method

    def plan(self, keep: float) -> Plan:
        """It alone, at a ratio."""
        return Plan.of(**{self.stage: (self.name, keep)})

    def made(self) -> type[Compressor]:
        """Its class."""
        base = COMPRESSORS[self.stage, self.method]
        fields = [(name, Any, field(default=value)) for name, value in self.values.items()]
        space = {"name": self.name, "stages": (self.stage,), "__module__": __name__, **self.parts}
        return make_dataclass(base.__name__, fields, bases=(base,), namespace=space, frozen=True)


@contextmanager
def registered(variants: Sequence[Variant]) -> Iterator[None]:
    """Plans may name these variants inside."""
    new = {(each.stage, each.name): each.made() for each in variants if each.said}
    COMPRESSORS.update(new)
    try:
        yield
    finally:
        for key in new:
            del COMPRESSORS[key]


def alone(reduction: Reduction) -> Reduction:
    """The anchors of a reduction and nothing else; slots without one are gone."""
    own = reduction.anchor >= 0
    used = own.sum(dim=1)
    count = None if bool((used == used.max()).all()) else used
    order = (~own).long().argsort(dim=1, stable=True)[:, : int(used.max())]
    return Reduction(reduction.anchor.gather(1, order), count=count)


def unmerged(stage: str, method: str) -> dict[str, Any]:
    """Parts of a method whose slots hold their anchors alone."""
    plan = COMPRESSORS[stage, method].plan
    return {"plan": lambda self, tokens, count: alone(plan(self, tokens, count)), "adaptive": True}


def one_level(self: Any, tokens: Tokens, count: int) -> Reduction:
    """Chat-UniVi's fine level with the whole count, for pictures."""
    return self.clusters(self.points(tokens), 1, count, self.neighbours[0])


def turned(self: Any, tokens: Tokens) -> Tensor:
    """FiCoCo's redundancy with the other sign."""
    return -COMPRESSORS["encoder", "ficoco"].redundancy(self, tokens)


KEPT, ANEW = {"positions": "keep"}, {"positions": "renumber"}
FICOCO, MUSTDROP = ("encoder", "ficoco"), ("encoder", "mustdrop")
TRIM, PAR, UNIVI = ("outside", "trim"), ("outside", "par"), ("outside", "chat_univi")
RIVALS = (Variant("outside", "random"), Variant("outside", "random", "numbered anew", parts=ANEW))
VARIANTS = (
    *RIVALS,
    Variant("outside", "hiprune"),
    Variant("outside", "hiprune", "places kept", parts=KEPT),
    Variant("outside", "tome"),
    Variant("outside", "tome", "places kept", parts=KEPT),
    Variant(*FICOCO),
    *(Variant(*FICOCO, f"share={share:g}", {"share": share}) for share in (0.0, 0.35, 1.0)),
    Variant(*FICOCO, "seen=paid", {"seen": "paid"}),
    Variant(*FICOCO, "window=1", {"window": 1}),
    Variant(*FICOCO, "places kept", parts=KEPT),
    Variant(*FICOCO, "unmerged, places kept", parts=KEPT | unmerged(*FICOCO)),
    Variant(*FICOCO, "share=0, unmerged, places kept", {"share": 0.0}, KEPT | unmerged(*FICOCO)),
    Variant(*FICOCO, "turned, unmerged, places kept", {"window": 1}, KEPT | unmerged(*FICOCO) | {"redundancy": turned}),
    Variant(*MUSTDROP),
    Variant(*MUSTDROP, "side=2", {"side": 2}),
    Variant(*MUSTDROP, "places kept", parts=KEPT),
    Variant(*MUSTDROP, "unmerged, places kept", parts=KEPT | unmerged(*MUSTDROP)),
    Variant(*TRIM),
    Variant(*TRIM, "sign=1", {"sign": 1}),
    Variant(*TRIM, "places kept", parts=KEPT),
    Variant(*TRIM, "sign=1, places kept", {"sign": 1}, KEPT),
    Variant(*PAR),
    Variant(*PAR, "route=drop", {"route": "drop"}),
    Variant(*PAR, "threshold=0.95", {"threshold": 0.95}),
    Variant(*PAR, "places kept", parts=KEPT),
    Variant(*PAR, "route=drop, places kept", {"route": "drop"}, KEPT),
    Variant(*UNIVI),
    Variant(*UNIVI, "places kept", parts=KEPT),
    Variant(*UNIVI, "one level", parts={"plan": one_level}),
    Variant(*UNIVI, "one level, places kept", parts=KEPT | {"plan": one_level}),
    Variant(
        *UNIVI,
        "one level, unmerged, places kept",
        parts=KEPT | {"plan": lambda self, tokens, count: alone(one_level(self, tokens, count))},
    ),
    Variant(*UNIVI, "scaled", {"unit": True}),
    Variant(*UNIVI, "scaled, one level", {"unit": True}, {"plan": one_level}),
    Variant(*UNIVI, "scaled, places kept", {"unit": True}, KEPT),
    Variant(*UNIVI, "scaled, one level, places kept", {"unit": True}, KEPT | {"plan": one_level}),
)
