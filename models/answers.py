"""Behind the prompt: the probability of accepted answers, and the model's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.models.behind import Continuation, greedy
from foveate.models.errors import BadInput
from foveate.models.host import Score
from foveate.models.inputs import padded
from foveate.models.ledger import charge_answers, charge_score
from foveate.models.ragged import exists
from foveate.models.sampling import Settings, sampled

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
    cached, reading = of.cached, of.reading
    for row, answer in pairs:
        charge_score(of.ledger[row], of.host.shape, cached[row], len(answer), reading[row])
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


def generate(of: Pass, settings: Settings) -> list[str]:
    """Answers, special tokens left out, `settings.answers` of each row; ids go to `Pass.generated`.

    Charged are the tokens of each answer; of a beam search every sequence at every step, as long as it ran.
    """
    if settings.plain:
        of.generated, steps = greedy(of.host.decoder, of.caches, of.logits, settings.ends, settings.limit), 0
    else:
        of.generated, steps = sampled(of, settings)
    each, beams = settings.answers, settings.beams
    own = [[len(ids) for ids in of.generated[row * each : (row + 1) * each]] for row in range(len(of))]
    of.ran = own if beams == 1 else [[steps] * beams] * len(of)
    for ledger, entries, ran, reading in zip(of.ledger, of.cached, of.ran, of.reading, strict=True):
        charge_answers(ledger, of.host.shape, entries, ran, reading)
    return [of.host.inputs.text(ids) for ids in of.generated]
