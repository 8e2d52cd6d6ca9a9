"""What methods see of the answer: do their scores tell the patches that it is read from, and do these stay?

`Turn.at` says where an answer is read from. A score that knows nothing of it has rank correlation 0 with being there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.compressors.base import Reduction, Tokens
from foveate.compressors.dpc_knn import peaks, unit_scale
from foveate.envs.inputs import Input, input_of
from foveate.models.host import Host
from foveate.models.passes import Pass
from foveate.models.reference.architecture import PATCH
from foveate.models.reference.batches import coverage
from foveate.plans.plan import STAGES, Plan
from foveate.tasks.base import Turn
from foveate.tasks.registry import iter_samples, regimes

TASKS = ("scenes", "reading", "documents", "charts", "digits", "pictures")
Score = Callable[[Any, Tokens], Tensor]


def by_size(kind: str) -> Score:
    """A signal (B, N), or the mean over heads of one (B, H, N)."""
    return lambda method, tokens: (value := tokens.signals[kind].float()).reshape(len(value), -1, tokens.n).mean(dim=1)


def received(method: Any, tokens: Tokens) -> Tensor:
    """Attention that the other patches pay to each."""
    maps = tokens.signals["attention_map"].float()
    return maps.sum(dim=1) - maps.diagonal(dim1=1, dim2=2)


def of_peaks(part: int, scale: Callable[[Tensor], Tensor] = Tensor.float) -> Score:
    """Chat-UniVi's density * distance (0) or density (1) on the fine level."""
    there = lambda tokens: torch.ones(tokens.size.shape, dtype=torch.bool, device=tokens.x.device)  # noqa: E731
    return lambda method, tokens: peaks(scale(tokens.x), there(tokens), method.neighbours[0])[part]


def unlike_window(method: Any, tokens: Tokens) -> Tensor:
    """How little the tokens of a token's window are alike."""
    window, _ = method._windows(tokens.grid, tokens.n)
    return -method._alike(tokens.x, window, window.bincount())[:, window]


SCORES: tuple[tuple[str, str, str, Score], ...] = (
    ("encoder", "ficoco", "attention received from patches: the more, the sooner it goes", received),
    ("encoder", "ficoco", "attention of CLS: the more, the longer it stays", by_size("cls_attention")),
    ("encoder", "ficoco", "both: minus redundancy", lambda method, tokens: -method.redundancy(tokens)),
    ("encoder", "mustdrop", "unlikeness inside its window: the less, the sooner it merges", unlike_window),
    ("outside", "trim", "cosine with the question: the less, the longer it stays", by_size("text_similarity")),
    (
        "outside",
        "par",
        "relevance to the question's phrases: the more, the longer it stays",
        lambda method, tokens: method.relevance(tokens.signals["phrase_similarity"])[0],
    ),
    ("outside", "chat_univi", "density: the more, the sooner it is a centre", of_peaks(1)),
    ("outside", "chat_univi", "density * distance to a denser one: the more, the sooner it is a centre", of_peaks(0)),
    ("outside", "chat_univi", "the same on features at mean square 1", of_peaks(0, unit_scale)),
)
"""Stage, method, score in words, and the score (B, N)."""


@dataclass(frozen=True)
class Asked:
    """An input, and which of the picture's patches show what its answer is read from: (N,) bool."""

    input: Input
    answer: np.ndarray


def drawn(n: int, seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Asked]:
    """`n` inputs of each regime, those of `foveate bench` on the test split."""
    number, out = len(regimes(tasks)), []
    for i, sample in enumerate(iter_samples(tasks, "test", n * number, seed)):
        turn = i // number % len(sample.turns)
        out.append(Asked(input_of(sample, turn), on_answer(sample.turns[turn])))
    return out


def on_answer(turn: Turn) -> np.ndarray:
    """(N,) bool: patches of which at least a quarter lies on a box of the answer; none where no box is known."""
    area = sum((right - left) * (bottom - top) for left, top, right, bottom, *_ in turn.at)
    return coverage(turn.at) * area >= PATCH**2 / 4


def correlation(score: np.ndarray, answer: np.ndarray) -> float | None:
    """Rank correlation (rank-biserial) of scores (N,) with answer (N,) bool, -1 to 1; None where that is constant."""
    if not 0 < answer.sum() < len(answer):
        return None
    on, off = score[answer][:, None], score[~answer][None]
    return float(np.sign(on - off).mean())


@torch.no_grad()
def scored(host: Host, asked: Sequence[Asked], stage: str, name: str, score: Score) -> float:
    """Mean rank correlation of what a method sees of all tokens with the answer's places."""
    base, seen = type(host.make(stage, name)), []

    def plan(self: Any, tokens: Tokens, count: int) -> Reduction:
        seen.append(score(self, tokens))
        return base.plan(self, tokens, count)

    p, probe = opened(host, asked), type("Probe", (base,), {"plan": plan})()
    (p.encode if stage == "encoder" else p.thin)(probe, 0.5)
    first = seen[0].cpu().numpy()  # of the first block where it acts: all tokens are there
    found = [correlation(row, each.answer) for row, each in zip(first, asked, strict=True)]
    return float(np.mean([value for value in found if value is not None]))


def opened(host: Host, asked: Sequence[Asked]) -> Pass:
    """A pass over some inputs."""
    return host.open([each.input.image for each in asked], [each.input.question for each in asked])


@torch.no_grad()
def stays(host: Host, asked: Sequence[Asked], plan: Plan) -> float:
    """Share of the answer's patches that are still a token's own place behind the stages before the projector."""
    p = opened(host, asked)
    for stage in STAGES[:3]:
        p.run_stage(stage, [plan] * len(asked))
    found = []
    for state, each in zip(p.states["outside"], asked, strict=True):
        if each.answer.any():
            left = np.zeros(each.answer.shape, bool)
            left[[at for at in state.position.tolist() if at >= 0]] = True
            found.append(left[each.answer].mean())
    return float(np.mean(found))
