"""Tokens of an answer fed behind a pass one at a time, as decoding feeds them."""

import torch

from foveate.models.behind import Continuation


def one_by_one(p, rows, tokens):
    """Logits (R, 1 + Q, V) behind the prompts of some rows and behind each of the tokens (R, Q) fed to them."""
    run, found = Continuation(p.host.decoder, p.caches, torch.tensor(rows)), [p.logits[rows]]
    for token in torch.tensor(tokens).T:
        found.append(p.host.decoder.logits(run.feed(token[:, None])[:, -1]))
    return torch.stack(found, dim=1)
