"""The decision: an observation and a mask in, an action out, whatever comes in.

    controller = Controller(load("policy.fov", fingerprint=host.fingerprint), budget=0.4)
    decision = controller.decide_stop("outside", groups, progress, mask)
    choice = controller.choice("outside", decision)          # compressor and keep ratio

A decision never raises. What cannot be judged gets the safe action: no compression where the mask allows it or cannot
be read, otherwise the legal action with the mildest level (a mask that forbids "no compression" keeps a hard budget).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from foveate.controller import dial
from foveate.controller.artefact import Artefact, load
from foveate.controller.network import pick
from foveate.controller.observation import Progress, Unseen, read_lambda
from foveate.plans.plan import STAGES, Choice, Plan

REASONS: tuple[str, ...] = ("policy", "regression", "mask", "shape", "nan", "outside", "error")
"""Why an action was taken. The first two: by the network. Safe actions: no legal action or an unreadable mask; an
observation of another shape; NaN or infinity in it or in the scores; too many features beyond the training range, or a
video where none was seen in training; anything unforeseen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """An action and why it was taken.

    Attributes:
        method: row of the action table, or of the plans where the whole plan is chosen; 0 = no compression.
        ratio: ratio level, 0 = the highest keep ratio.
        reason: one of `REASONS`.
    """

    method: int
    ratio: int
    reason: str

    @property
    def safe(self) -> bool:
        """True where the network was not asked or not believed."""
        return self.reason not in REASONS[:2]


class Controller:
    """Decides with numpy alone. Safe to share between threads.

    Args:
        artefact: what `load` gives.
        lam: trade-off weight; None = the artefact's default.
        budget: mean cost as a share of the uncompressed FLOPs instead, turned into lambda by the calibration.
        network: another forward of the same weights, such as `OnnxNetwork`; None = numpy.

    Raises:
        ValueError: both dials, or one outside the calibrated range.

    Attributes:
        counters: decisions so far, by reason.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        lam: float | None = None,
        budget: float | None = None,
        network: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        artefact.check()
        self.artefact = artefact
        self.counters: Counter[str] = Counter()
        self.lam = self.dial(lam=lam, budget=budget)
        self._network = network or artefact.network
        self._lock = Lock()
        self._ranges: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        table = artefact.table
        self._offered = {} if table is None else {stage: table.legal(stage) for stage in STAGES}

    @classmethod
    def load(cls, path: str | Path, *, fingerprint: str | None = None, **dials: float | None) -> Controller:
        """A controller from its file. Raises: ControllerError, see `artefact.load`; ValueError on a dial."""
        return cls(load(path, fingerprint=fingerprint), **dials)

    def dial(self, *, lam: float | None = None, budget: float | None = None) -> float:
        """The lambda of a dial, for one request or for all; changes nothing.

        Raises:
            ValueError: both given, not a positive number, or outside the calibrated range.
        """
        if lam is not None and budget is not None:
            raise ValueError("dial: give lam or budget, not both")
        if budget is not None:
            return dial.lambda_for(self.artefact.calibration, budget)
        if lam is None:
            return self.artefact.lam
        known = [point for point, _ in self.artefact.calibration]
        low, high = (known[0], known[-1]) if known else (0.0, np.inf)
        if not low <= lam <= high or not 0 < lam < np.inf:
            raise ValueError(f"lam: {lam} is outside the calibrated range {low:g} .. {high:g}")
        return float(lam)

    def decide(self, observation: Mapping[str, np.ndarray]) -> Decision:
        """The action for one observation; never raises.

        Args:
            observation: as the environment's: "vector" (D,) as `Layout.assemble` gives it, lambda included, and "mask"
                (M, R) of bool or 0 and 1. Other entries are not read.
        """
        mask = None
        try:
            mask = _readable(observation["mask"], self.artefact.network.shape)
            decision = self._decide(observation["vector"], mask)
        except Exception:
            _log.warning("controller: safe action after an unforeseen error", exc_info=True)
            decision = _safe(mask, "error")
        return self._counted(decision)

    def _counted(self, decision: Decision) -> Decision:
        with self._lock:
            self.counters[decision.reason] += 1
        return decision

    def decide_stop(
        self,
        stage: str,
        groups: Mapping[str, np.ndarray],
        progress: Progress,
        mask: np.ndarray,
        lam: float | None = None,
    ) -> Decision:
        """As `decide`, from the parts of an observation (see `Layout.assemble`); `lam` None = this controller's dial.

        The mask is narrowed to what the action table offers at the stage, so that `choice` knows the answer.
        """
        if isinstance(mask, np.ndarray) and stage in self._offered and mask.shape == self._offered[stage].shape:
            mask = mask & self._offered[stage] if mask.dtype == bool else np.where(self._offered[stage], mask, 0)
        try:
            vector: Any = self.artefact.layout.assemble(stage, self.lam if lam is None else lam, progress, groups)
        except Unseen:
            return self._counted(_safe(_readable(mask, self.artefact.network.shape), "outside"))
        except Exception as error:
            _log.warning("controller: no observation at %s: %s", stage, error)
            vector = None
        return self.decide({"vector": vector, "mask": mask})

    def choice(self, stage: str, decision: Decision) -> Choice:
        """What a decision means at a stage. Raises: ValueError where rows are plans: ask `plan`."""
        if self.artefact.table is None:
            raise ValueError("choice: this controller decides whole plans; ask plan(decision)")
        return self.artefact.table.decode(stage, decision.method, decision.ratio)

    def plan(self, decision: Decision) -> Plan:
        """The plan that a decision stands for. Raises: ValueError where rows are methods: ask `choice`."""
        if self.artefact.table is not None:
            raise ValueError("plan: this controller decides stage by stage; ask choice(stage, decision)")
        return self.artefact.plans[decision.method]

    def _decide(self, vector: Any, mask: np.ndarray | None) -> Decision:
        artefact = self.artefact
        if mask is None or not np.count_nonzero(mask):
            return _safe(mask, "mask")
        size = artefact.layout.size
        if not isinstance(vector, np.ndarray) or vector.shape != (size,) or vector.dtype.kind != "f":
            return _safe(mask, "shape")
        low, high, revealed = self._range(vector)
        inside = (vector >= low) & (vector <= high)
        if np.count_nonzero(inside) < size:  # NaN and infinity are in no range
            if not np.isfinite(vector).all():
                return _safe(mask, "nan")
            outside = np.count_nonzero(artefact.normalisation.outside(vector) & revealed)
            if outside > artefact.outside_limit * np.count_nonzero(revealed):
                return _safe(mask, "outside")
        first, second = self._network(artefact.normalisation(vector))
        if not isfinite(sum(first.ravel().tolist()) + sum(second.ravel().tolist())):
            return _safe(mask, "nan")
        kind = artefact.network.kind
        return Decision(*pick(kind, (first, second), mask, read_lambda(vector)), kind)

    def _range(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lowest and highest value of each entry in training, without bound where no feature is revealed; and where one
        is."""
        revealed = self.artefact.layout.revealed(vector)
        known = self._ranges.get(id(revealed))
        if known is None:
            norm, most = self.artefact.normalisation, np.finfo(np.float32).max
            known = np.where(revealed, norm.low, -most), np.where(revealed, norm.high, most), revealed
            self._ranges[id(revealed)] = known
        return known


def _readable(mask: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """The mask as (M, R) bool, or None where it is not one: another shape, another type, values besides 0 and 1."""
    if not isinstance(mask, np.ndarray) or mask.shape != tuple(shape) or mask.dtype.kind not in "biuf":
        return None
    if mask.dtype == bool:
        return mask
    legal = mask.astype(bool)
    return legal if (legal == mask).all() else None  # NaN or 2 equals no truth value


def _safe(mask: np.ndarray | None, reason: str) -> Decision:
    """No compression, or the mildest legal action where a readable mask forbids that."""
    if mask is None or mask[0, 0] or not mask.any():
        return Decision(0, 0, reason)
    level, row = np.argwhere(mask.T)[0]
    return Decision(int(row), int(level), reason)
