"""A host's pass driven by plans: stages, looks at the tokens in between, and the verdict on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foveate.envs.inputs import Input
from foveate.envs.masks import STOP_GROUP, feature_flops
from foveate.envs.quality import Outcome, outcome_of
from foveate.models.ledger import Ledger, charge_answer

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.passes import Pass

__all__ = [
    "Bill",
    "Reference",
    "Verdict",
    "feature_flops",
    "judge",
    "look",
    "reference_of",
    "token_features",
]


@dataclass(frozen=True)
class Bill:
    """A row's FLOPs so far.

    Attributes:
        own: of the pass itself, features left out.
        features: of the policy's features.
    """

    own: int
    features: int

    @classmethod
    def of(cls, ledger: Ledger) -> Bill:
        """The parts of a ledger."""
        features = ledger.by_stage().get("features", 0)
        return cls(ledger.total - features, features)


@dataclass(frozen=True)
class Verdict:
    """What one plan gave on one input.

    Attributes:
        outcome: of the answer.
        bill: up to the end of the counted answer.
        tokens: mean over decoder layers of visual tokens.
        kv: bytes of the cache behind the prompt.
    """

    outcome: Outcome
    bill: Bill
    tokens: float
    kv: int


@dataclass(frozen=True)
class Reference:
    """The uncompressed model's own answer y0 and its probability."""

    answer: str
    prob: float


def token_features() -> dict[str, tuple[str, ...]]:
    """Group -> names of the token features that hosts reveal."""
    from foveate.models.features import TOKEN_FEATURES

    return dict(TOKEN_FEATURES)


def look(p: Pass, stop: str) -> list[np.ndarray]:
    """Each row's token features at a stop, (d,) float32; charged to the rows' ledgers under "features"."""
    from foveate.models import features

    return features.reveal(p, STOP_GROUP[stop])


def reference_of(host: Host, input: Input, max_new_tokens: int = 8) -> Reference:
    """What the uncompressed model says, greedily, and how sure it is."""
    p = host.open([input.image], [input.question])
    answer = p.decode(max_new_tokens=max_new_tokens)[0]
    return Reference(answer, outcome_of(p.score([[answer]])[0], 1).prob)


def judge(p: Pass, inputs: Sequence[Input], own: Sequence[str | None], answer_tokens: int) -> list[Verdict]:
    """The verdict on each row of a pass behind its last stage.

    Args:
        p: the pass.
        inputs: of its rows.
        own: y0 of each row where its probability is wanted, else None.
        answer_tokens: length of the answer that the cost counts.
    """
    texts = [[*each.answers, *([] if y0 is None else [y0])] for each, y0 in zip(inputs, own, strict=True)]
    found, cached, reading, layers, out = p.score(texts), p.cached, p.reading, p.counts["layers"], []
    for row, (each, score) in enumerate(zip(inputs, found, strict=True)):
        ledger = p.ledger[row].copy()
        kv = ledger.kv_bytes_end
        charge_answer(ledger, p.host.shape, cached[row], answer_tokens, reading[row])
        out.append(Verdict(outcome_of(score, len(each.answers)), Bill.of(ledger), float(np.mean(layers[row])), kv))
    return out
