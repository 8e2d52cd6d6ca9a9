"""What learned methods share: a network trained for one host, and what they say where there is none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.compressors.base import Compressor
from foveate.compressors.tokens import Grid

Projector = tuple[tuple[Tensor, Tensor], ...]
"""(weight, bias) of each matrix of a host's own projector, with GELU between them; () = it is built otherwise."""

DISTILLED = "foveate distill METHOD --model MODEL"

TRAINING_RATIOS = (1 / 16, 1 / 9, 1 / 4, 1 / 2)
"""Keep ratios at which an elastic method is trained, unless it says otherwise."""


@dataclass(frozen=True)
class Widths:
    """What a network must fit.

    Attributes:
        visual: features of a token behind the tower.
        decoder: features of a token in the decoder.
        text: width of the space in which the text tower compares question and tokens; 0 without one.
        encoder_depth, decoder_depth: blocks and layers that run.
        grid: (T, H, W) of the tokens of a usual view.
        heads, kv_heads: of one decoder layer.
        head_dim: features of one of them; 0 = those of a token, divided among the heads.
    """

    visual: int
    decoder: int
    text: int
    encoder_depth: int
    decoder_depth: int
    grid: Grid
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 0


class MissingWeights(ValueError):
    """A learned method was asked to act without a network; the message names the command that makes one."""


def no_weights(method: type[Learned] | Learned) -> str:
    """What is said of a learned method without weights."""
    return f"{method.name}: has no weights for this host; `{method.made_by}` makes them"


@dataclass(frozen=True)
class Learned(Compressor):
    """A method that runs a network. Stands first among the bases: `class LDPv2(Learned, Resampler)`.

    The network is a module with a fixed set of parameters; it holds nothing between calls. Its forward pass is
    differentiable in them, since the recipe trains the very method that a host runs.

    Class attributes:
        rate: peak learning rate in training.
        rates: others, of parameters below a module or with a name of their own: {"offset": 2e-5}.
        gentle: share of the steps, the first ones, in which it is trained at its mildest count alone.
        further: names of losses, see `models.distilling.further`, where the answers behind it teach it nothing.
        made_by: the command that makes its weights; one that is not distilled names another.

    Args:
        network: trained weights, as `build` shapes them.
    """

    learned = True
    rate: ClassVar[float] = 1e-3
    rates: ClassVar[Mapping[str, float]] = {}
    gentle: ClassVar[float] = 0.0
    further: ClassVar[tuple[str, ...]] = ()
    made_by: ClassVar[str] = DISTILLED

    network: nn.Module | None = field(default=None, compare=False, repr=False, kw_only=True)

    @abstractmethod
    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        """A fresh network. Where shapes allow it computes at first what pooling and the host's projector would.

        Args:
            widths: of the host.
            projector: the host's own.
        Raises:
            ValueError: a width that the method cannot work with.
        """

    def training_counts(self, grid: Grid) -> Sequence[int]:
        """Counts that training draws from, each entry with equal chance (an entry may stand there several times)."""
        reachable, n = self.reachable(grid), grid[0] * grid[1] * grid[2]
        return sorted({min(reachable, key=lambda count: abs(count - n * ratio)) for ratio in TRAINING_RATIOS})

    def rate_of(self, parameter: str) -> float:
        """Peak learning rate of a parameter by its name in the network, as "layers.0.cross.offset.bias"."""
        return next((self.rates[part] for part in parameter.split(".") if part in self.rates), self.rate)

    @property
    def loaded(self) -> Any:
        """The network. Raises: MissingWeights."""
        if self.network is None:
            raise MissingWeights(no_weights(self))
        return self.network

    def run(self, *arguments: Any) -> Tensor:
        """The network's answer, reckoned where it lies and in its type of numbers, as the first argument has them."""
        weight, given = next(self.loaded.parameters()), arguments[0]
        own = [a.to(weight) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
        return self.network(*own).to(given)

    def check(self, n: int, count: int, signals: Mapping[str, Tensor], rows: int | None = None) -> None:
        """See `Compressor.check`. Raises: MissingWeights too."""
        super().check(n, count, signals, rows)
        _ = self.loaded


def untrained(method: Compressor, widths: Widths, projector: Projector = (), seed: int = 0) -> Compressor:
    """The method with a freshly built network; itself where it learns nothing."""
    if not isinstance(method, Learned):
        return method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return replace(method, network=method.build(widths, projector))


def on_trial(method: Compressor, grid: Grid = (1, 3, 4), features: int = 8, heads: int = 1) -> Compressor:
    """The method, untrained where it learns, for tokens of this grid with as many features before and behind the
    projector, in a decoder of so many heads."""
    widths = Widths(features, features, features, encoder_depth=4, decoder_depth=4, grid=grid, heads=heads)
    return untrained(method, widths)
