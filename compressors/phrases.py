"""What a question speaks of, without a parser: its entities, its actions and itself. For hosts that embed phrases."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.compressors.matching import cosine

KINDS = ("entity", "action", "sentence")
"""Rows of the `phrase_similarity` signal."""

STOP = frozenset(
    "a an and any are as at be been but by can could did do does for from had has have he her his how i if in into is "
    "it its many me more most much my no not of on one or our out over say see she should so some than that the their "
    "them then there these they this those to under up us was we were what when where which who whom whose why will "
    "with would you your".split()
)
VERBS = frozenset(
    "ask be bring build carry catch choose climb close come count cut describe draw drink drive eat fall find fly get "
    "give go hang hit hold jump keep lean lie lift live look make move open paint pick play point pour pull push put "
    "read ride run sell show sing sit sleep smile stand stop swim take talk tell throw touch turn use wait walk watch "
    "wear work write".split()
)


class Phrases(NamedTuple):
    """The phrases of a question, each once, in the order of their first appearance."""

    entities: tuple[str, ...]
    actions: tuple[str, ...]
    sentence: str

    def listed(self) -> list[tuple[str, str]]:
        """(kind, phrase) of all of them."""
        kinds = zip(KINDS, (self.entities, self.actions, (self.sentence,) if self.sentence else ()), strict=True)
        return [(kind, phrase) for kind, phrases in kinds for phrase in phrases]


def parse(question: str) -> Phrases:
    """Entities: runs of words that are neither common nor verbs. Actions: verbs, and words that end in -ing or -ed."""
    sentence = " ".join(question.lower().split())
    entities: dict[str, None] = {}
    actions: dict[str, None] = {}
    for part in re.split(r"[^\w\s'-]+", sentence):
        run: list[str] = []
        for word in [*re.findall(r"\w[\w'-]*", part), ""]:  # "" ends the last run
            is_action = word in VERBS or (len(word) > 4 and word.endswith(("ing", "ed")))
            if word and not is_action and word not in STOP:
                run.append(word)
                continue
            if run:
                entities[" ".join(run)] = None
            if is_action:
                actions[word] = None
            run = []
    return Phrases(tuple(entities), tuple(actions), sentence)


def phrase_similarity(tokens: Tensor, phrases: Tensor, kinds: list[str]) -> Tensor:
    """The `phrase_similarity` signal of one row.

    Tokens, and phrases where there are three or more, are centred over their own set once their lengths are 1: what
    all tokens or all texts share says nothing.

    Args:
        tokens: (N, e) in the space of the phrases.
        phrases: (P, e) embeddings.
        kinds: of each phrase, from `KINDS`.
    Returns:
        (3, N) float32 largest cosine with a phrase of each kind; -inf where there is none.
    """
    unit = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (tokens, phrases)]
    centred = [x - x.mean(dim=0) if len(x) > 2 or side == 0 else x for side, x in enumerate(unit)]
    found = cosine(centred[1], centred[0])  # (P, N)
    out = found.new_full((len(KINDS), tokens.shape[0]), -torch.inf)
    row = torch.tensor([KINDS.index(kind) for kind in kinds], dtype=torch.int64, device=found.device)
    return out.scatter_reduce_(0, row.unsqueeze(-1).expand_as(found), found, "amax")
