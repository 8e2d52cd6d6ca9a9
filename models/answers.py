"""Behind the prompt: the probability of accepted answers, and greedy answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.models.behind import Continuation, greedy
from foveate.models.errors import BadInput
from foveate.models.host import Score
from foveate.models.inputs import padded
from foveate.models.ledger import charge_answer, charge_score
from foveate.models.ragged import exists

if TYPE_CHECKING:
    from foveate.models.passes import Pass


def score(of: Pass, accepted: Sequence[Sequence[str]]) -> list[Score]:
    """Log-probability and greedy flag of each accepted answer of each row, end token included; caches stay as they are.

    Raises:
        BadInput: not one list of answers, at least one answer long, for each row.
    """
    if len(accepted) != len(of) or not all(accepted) or any(isinstance(a, str) for a in accepted):
        raise BadInput(f"score: needs a list of at least one accepted answer for each of {len(of)} rows")
    ids_of = of.host.inputs.answer_ids
    pairs = [(row, ids_of(of.rows[row], text)) for row, texts in enumerate(accepted) for text in texts]
    device = of.logits.device
    rows = torch.tensor([row for row, _ in pairs], device=device)
    ids, length = padded([ids for _, ids in pairs], device)
    logits = forced(of, rows, ids)
    cached = of.cached
    for row, answer in pairs:
        charge_score(of.ledger[row], of.host.shape, cached[row], len(answer))
    logprob, right = judged(logits, ids, length, of.host.ends)
    found = [Score([], []) for _ in accepted]
    for (row, _), value, hit in zip(pairs, logprob.tolist(), right.tolist(), strict=True):
        found[row].logprob.append(value)
        found[row].greedy.append(hit)
    return found


def forced(of: Pass, rows: Tensor, ids: Tensor) -> Tensor:
    """(R, 1 + Q, V) logits behind the prompts of `rows` (R,) and behind each of the tokens ids (R, Q) fed to them."""
    logits = of.logits[rows][:, None]
    if not ids.shape[1]:
        return logits
    decoder = of.host.decoder
    return torch.cat([logits, decoder.logits(Continuation(decoder, of.caches, rows).feed(ids))], dim=1)


def judged(logits: Tensor, ids: Tensor, length: Tensor, ends: frozenset[int]) -> tuple[Tensor, Tensor]:
    """Sum of log-probabilities (R,) and whether every arg-max is right (R,), of ids (R, Q) with one end behind each.

    Several end tokens share their probability: any of them ends an answer.
    """
    logp, best = logits.log_softmax(-1), logits.argmax(-1)
    end = torch.tensor(sorted(ends), device=logits.device)
    of_end, is_end = logp[..., end].logsumexp(-1), torch.isin(best, end)
    inside = exists(length, logits.shape[1])
    last = torch.arange(logits.shape[1], device=logits.device)[None] == length[:, None]
    target = torch.nn.functional.pad(ids, (0, 1))
    of_token = logp.gather(2, target[..., None])[..., 0]
    total = of_token.where(inside, 0.0).sum(1) + of_end.where(last, 0.0).sum(1)
    right = torch.where(inside, best == target, torch.where(last, is_end, True)).all(1)
    return total, right


def generate(of: Pass, max_new_tokens: int) -> list[str]:
    """Greedy answers, special tokens left out; ids go to `Pass.generated`. Raises: BadInput on a limit below 1."""
    if max_new_tokens < 1:
        raise BadInput(f"max_new_tokens = {max_new_tokens} is below 1")
    of.generated = greedy(of.host.decoder, of.caches, of.logits, of.host.ends, max_new_tokens)
    cached = of.cached
    for row, ids in enumerate(of.generated):
        charge_answer(of.ledger[row], of.host.shape, cached[row], len(ids))
    return [of.host.inputs.text(ids) for ids in of.generated]
