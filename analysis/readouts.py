"""Pages read out value by value behind one compressed cache: long answers that are known, in words a model has learned.

A page is shown once, with the question for its first value, and compressed by that. Every further question stands in
the first one's place behind what is left of the page, as in a service that keeps a page's cache: positions are those of
a fresh prompt, and what no method has dropped answers as a fresh prompt does. So a method is judged by what it keeps
for questions that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from foveate.models.behind import Continuation, greedy
from foveate.models.decoder import LayerCache
from foveate.models.host import Host
from foveate.models.inputs import Row, padded
from foveate.models.passes import Pass
from foveate.models.ragged import packed, unpacked
from foveate.plans.plan import Plan
from foveate.tasks.base import exact_match, similarity
from foveate.tasks.documents import Documents
from foveate.tasks.questions import ALL_WORDINGS, word
from foveate.tasks.registry import TASKS
from foveate.tasks.splits import stream

LONGEST = 8
"""Tokens of one value at most."""

POOL = 20
"""Of so many pages for each one wanted, those with most to read are taken."""


@dataclass(frozen=True, eq=False)
class Page:
    """A page with the questions for all its values, in all wordings, and their answers.

    Attributes:
        image: (H, W, 3) uint8.
        questions: one for each value, first in one wording, then in the next.
        answers: the accepted ones of each.
    """

    image: np.ndarray
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        """All that there is to read out."""
        return " ".join(each[0] for each in self.answers)


def pages(regime: str, split: str, n: int, seed: int = 0) -> list[Page]:
    """The `n` pages of a regime that have most to read, of some that the seed draws.

    Raises:
        ValueError: a regime whose pages have no list of values.
    """
    task = next((each for each in TASKS.values() if regime in each.regimes), None)
    if not isinstance(task, Documents):
        known = [name for each in TASKS.values() if isinstance(each, Documents) for name in each.regimes]
        raise ValueError(f"regime {regime!r}: no pages of values; choose from {', '.join(known)}")
    place = task.regimes.index(regime)
    drawn = stream("readouts", regime, split, seed).sample(range(50 * POOL * n), POOL * n)
    found = []
    for index in drawn:
        at = index * len(task.regimes) + place
        asks = task.every(task.find(split, at)[0])
        found.append((-sum(1 + len(ask.answers[0]) for ask in asks), at, asks))
    made = []
    for _, at, asks in sorted(found, key=lambda each: each[:2])[:n]:
        turns = [(ask, k) for k in range(max(len(ALL_WORDINGS[ask.template]) for ask in asks)) for ask in asks]
        questions = tuple(word(ask, k) for ask, k in turns)
        made.append(Page(task.sample(split, at).image, questions, tuple(ask.answers for ask, _ in turns)))
    return made


def behind_pictures(row: Row) -> int:
    """The first entry of a prompt behind its last picture."""
    return int(np.flatnonzero(row.view >= 0)[-1]) + 1


def of_pages(p: Pass) -> list[LayerCache]:
    """The caches of a pass without the words behind each row's pictures, ready for other words there."""
    words = torch.tensor([len(row.ids) - behind_pictures(row) for row in p.rows])
    return [_without(cache, words.to(cache.length.device)) for cache in p.caches]


def _without(cache: LayerCache, last: Tensor) -> LayerCache:
    """A layer's cache without so many entries (B,) at each row's end; they are text, which every head has."""
    parts = {"length": cache.length - last, "next_place": cache.next_place - last}
    if (reads := cache.reads) is not None:
        cut = {name: getattr(reads, name)[:, : int(parts["length"].max())] for name in ("visual", "source")}
        parts["reads"] = replace(reads, length=parts["length"], **cut)
    if cache.heads is None:
        return replace(cache, **parts)
    heads = cache.heads - last[:, None]
    parts |= {name: packed(unpacked(getattr(cache, name), cache.heads), heads) for name in ("keys", "values")}
    return replace(cache, heads=heads, **parts)


@torch.no_grad()
def read_out(host: Host, shown: Sequence[Page], plan: Plan) -> tuple[list[list[str]], int]:
    """What is said to each question of each page, behind one cache a page; and the tokens that this took, ends too."""
    p = host.open([page.image for page in shown], [page.questions[0] for page in shown]).run(plan)
    put = [(number, question) for number, page in enumerate(shown) for question in page.questions]
    asked = [host.inputs.asked(p.rows[number], question, i) for i, (number, question) in enumerate(put)]
    device = p.logits.device
    ids, length = padded([row.ids[behind_pictures(row) :].tolist() for row in asked], device)
    run = Continuation(
        host.decoder, of_pages(p), torch.tensor([number for number, _ in put], device=device), answers=False
    )
    x = run.feed(ids, length)
    first = host.decoder.logits(x[torch.arange(len(put), device=x.device), length.to(x.device) - 1])
    said = greedy(host.decoder, run.caches(), first, host.ends, LONGEST)
    texts = iter(host.inputs.text(each) for each in said)
    return [[next(texts) for _ in page.questions] for page in shown], sum(map(len, said))


@dataclass(frozen=True)
class Grade:
    """Pages read out.

    Attributes:
        right: share of the values that are right to the letter.
        alike: `similarity` of all that was said to all that stands there, mean over pages.
        tokens: said for each page, mean.
    """

    right: float
    alike: float
    tokens: float


def graded(host: Host, shown: Sequence[Page], plan: Plan, together: int = 4) -> Grade:
    """How well some pages are read out by a plan, so many pages at a time."""
    right, alike, tokens = [], [], 0
    for start in range(0, len(shown), together):
        some = shown[start : start + together]
        said, took = read_out(host, some, plan)
        tokens += took
        for page, values in zip(some, said, strict=True):
            right += [exact_match(value, accepted) for value, accepted in zip(values, page.answers, strict=True)]
            alike.append(similarity(" ".join(values), (page.text,)))
    return Grade(float(np.mean(right)), float(np.mean(alike)), tokens / len(shown))
