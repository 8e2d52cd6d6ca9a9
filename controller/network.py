"""The numpy forward of an exported policy, and how scores become an action.

    z     = clip((x - mean) / scale, -clip, clip)
    h     = act(W_k ... act(W_0 z + b_0) ... + b_k)     "trunk.i.weight" (out, in), "trunk.i.bias"; any number of layers
    policy:      method = W h + b (M,), ratio = W h + b (M, R)      action: best legal method, then its best legal ratio
    regression:  quality = W h + b (M, R), cost = W h + b (M, R)    action: best legal quality - lambda * cost

Rows are the methods of an action table and columns its ratio levels; or, where the whole plan is chosen at once, rows
are plans and R = 1. Sums are taken in float64 and rounded to float32, so that equal rows of weights give equal
scores; ties go to the lower index, as `torch.argmax` does on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ACTIVATIONS = ("relu", "tanh")
HEADS: dict[str, tuple[str, str]] = {"policy": ("method", "ratio"), "regression": ("quality", "cost")}
"""Kind of controller -> its two heads."""

Action = tuple[int, int]


@dataclass(frozen=True)
class Normalisation:
    """Statistics of the observation, over the training runs.

    Attributes:
        mean, scale: (D,) float32, scale > 0.
        low, high: (D,) float32, the range of the training observations: what is outside is unknown ground.
        clip: limit of a normalised value, > 0.
    """

    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    clip: float = 10.0

    def check(self, size: int) -> None:
        """Raises: ValueError naming the array that does not fit an observation of `size` entries."""
        for name in ("mean", "scale", "low", "high"):
            values = getattr(self, name)
            if values.shape != (size,) or not np.isfinite(values).all():
                raise ValueError(f"normalisation {name}: needs ({size},) finite values, has {values.shape}")
        if not (self.scale > 0).all() or not (self.low <= self.high).all() or not 0 < self.clip < np.inf:
            raise ValueError("normalisation: needs scale > 0, low <= high and 0 < clip < infinity")

    @cached_property
    def _double(self) -> tuple[np.ndarray, np.ndarray]:
        return self.mean.astype(np.float64), self.scale.astype(np.float64)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(..., D) -> (..., D) float64."""
        mean, scale = self._double
        z = x - mean
        z /= scale
        return np.minimum(np.maximum(z, -self.clip, out=z), self.clip, out=z)

    def outside(self, x: np.ndarray) -> np.ndarray:
        """(..., D) bool: the entries beyond what training saw."""
        return (x < self.low) | (x > self.high)


@dataclass(frozen=True)
class Network:
    """An MLP with two heads.

    Attributes:
        kind: "policy" or "regression".
        shape: (M, R) of the action.
        activation: "relu" or "tanh", after every trunk layer.
        arrays: float32 weights by name, see the head of this file.
    """

    kind: str
    shape: Action
    activation: str
    arrays: Mapping[str, np.ndarray]

    def check(self, size: int) -> None:
        """Raises: ValueError naming the kind, the activation or the array that is unknown, missing or misshapen."""
        for label, value, known in (("kind", self.kind, tuple(HEADS)), ("activation", self.activation, ACTIVATIONS)):
            if value not in known:
                raise ValueError(f"network {label}: unknown {value!r}; known: {', '.join(known)}")
        expected: dict[str, tuple[int, ...]] = {}
        for layer in range(self.depth):
            weight = self.arrays.get(f"trunk.{layer}.weight")
            width = 0 if weight is None else len(weight)
            expected |= {f"trunk.{layer}.weight": (width, size), f"trunk.{layer}.bias": (width,)}
            size = width
        m, r = self.shape
        for head in HEADS[self.kind]:
            width = m if head == "method" else m * r
            expected |= {f"{head}.weight": (width, size), f"{head}.bias": (width,)}
        for name in (*expected, *sorted(self.arrays.keys() - expected.keys())):
            have = self.arrays[name].shape if name in self.arrays else "nothing"
            if have != expected.get(name):
                raise ValueError(f"network array {name!r}: expected {expected.get(name, 'nothing')}, found {have}")
            if not np.isfinite(self.arrays[name]).all():
                raise ValueError(f"network array {name!r} holds NaN or infinity")

    @property
    def depth(self) -> int:
        """Number of trunk layers."""
        return len({name.split(".")[1] for name in self.arrays if name.startswith("trunk.")})

    @cached_property
    def _double(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(in, out) weight and bias of each layer in float64; the last one is both heads beside each other."""
        double = {name: values.astype(np.float64) for name, values in self.arrays.items()}
        trunk = [(double[f"trunk.{i}.weight"].T, double[f"trunk.{i}.bias"]) for i in range(self.depth)]
        heads = [np.concatenate([double[f"{h}.{part}"] for h in HEADS[self.kind]]) for part in ("weight", "bias")]
        return [*trunk, (heads[0].T, heads[1])]

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores of normalised observations.

        Args:
            z: (..., D).

        Returns:
            The two heads of `HEADS[kind]`, float32: "method" (..., M), the others (..., M, R).
        """
        *trunk, (weight, bias) = self._double
        h = z
        for w, b in trunk:
            h = h @ w
            h += b
            h = np.tanh(h, out=h) if self.activation == "tanh" else np.maximum(h, 0.0, out=h)
        scores = (h @ weight + bias).astype(np.float32)
        both = (*scores.shape[:-1], *self.shape)
        split = scores.shape[-1] - self.shape[0] * self.shape[1]
        first, second = scores[..., :split], scores[..., split:].reshape(both)
        return first if self.kind == "policy" else first.reshape(both), second


def pick(kind: str, scores: tuple[np.ndarray, np.ndarray], mask: np.ndarray, lam: float) -> Action:
    """The best legal action; ties to the lower index.

    Args:
        kind: "policy" or "regression".
        scores: what `Network` gives for one observation.
        mask: (M, R) bool with at least one True.
        lam: lambda, read by a regression only: a policy sees it in its observation.

    Returns:
        (row, ratio level).
    """
    first, second = scores
    if kind == "policy":  # in plain Python: so few numbers are compared faster than handed to numpy
        legal = mask.tolist()
        likes = first.tolist()
        row = max((r for r, levels in enumerate(legal) if True in levels), key=likes.__getitem__)
        likes = second[row].tolist()
        return row, max((level for level, yes in enumerate(legal[row]) if yes), key=likes.__getitem__)
    worth = np.where(mask, first.astype(np.float64) - lam * second, -np.inf).astype(np.float32)
    row, level = np.unravel_index(int(worth.argmax()), mask.shape)
    return int(row), int(level)
