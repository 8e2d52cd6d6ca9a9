"""A further turn of a conversation, behind the caches that a pass has left: nothing of the picture runs again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from foveate.models.behind import Continuation
from foveate.models.errors import BadInput
from foveate.models.inputs import Inputs, Row, padded
from foveate.models.ledger import charge_turn

if TYPE_CHECKING:
    from foveate.models.passes import Pass

PLAIN_TURN = " {answer}{end}USER: {question} ASSISTANT:"
"""Used where a processor brings no chat template; it goes on from `inputs.PLAIN_PROMPT`."""


def follow(of: Pass, questions: Sequence[str], replies: Sequence[str] | None) -> Pass:
    """See `Pass.follow`."""
    b, host = len(of), of.host
    if replies is None and len(of.generated) != b:
        raise BadInput(f"follow: {len(of.generated)} answers have been generated for {b} rows; say what was replied")
    replies = [host.inputs.text(ids) for ids in of.generated] if replies is None else replies
    if len(questions) != b or len(replies) != b:
        raise BadInput(f"follow: {len(questions)} questions and {len(replies)} replies for {b} rows")
    turns = zip(of.rows, replies, questions, strict=True)
    rows = [continued(host.inputs, row, reply, question, i) for i, (row, reply, question) in enumerate(turns)]
    if "prefill" not in of.done:
        of.prefill()
    other = of.fork(range(b))
    if "decode" not in other.done:
        other.choose_decode()
    device, cached = other.logits.device, other.cached
    new = [row.ids[len(old.ids) :].tolist() for row, old in zip(rows, of.rows, strict=True)]
    ids, length = padded(new, device)
    run = Continuation(host.decoder, other.caches, torch.arange(b, device=device), answers=False)
    x = run.feed(ids, length)
    for ledger, entries, fed in zip(other.ledger, cached, new, strict=True):
        charge_turn(ledger, host.shape, entries, len(fed))
    last = x[torch.arange(b, device=x.device), length.to(x.device) - 1]
    other.go_on(rows, run.caches(), host.decoder.logits(last))
    return other


def continued(inputs: Inputs, row: Row, reply: str, question: str, number: int) -> Row:
    """The whole conversation as one row: a row's prompt, what was replied, and the next question.

    Args:
        inputs: of the host.
        row: the conversation so far; its last question is not answered yet.
        reply: the answer to it.
        question: the next one.
        number: of the row, for messages.
    Raises:
        BadInput: a question or reply that cannot be put, or a template or tokenizer that writes the beginning of a
            longer conversation otherwise.
    """
    for name, text in (("question", question), ("reply", reply)):
        if not isinstance(text, str):
            raise BadInput(f"{name} {number}: needs a string, got {type(text).__name__}")
        for token in (inputs.image_token, inputs.video_text or inputs.video_token):
            if token in text:
                raise BadInput(f"{name} {number}: contains the token {token!r}; pictures come with the first question")
    prompt = row.prompt + _further(inputs, reply, question, number)
    before, ids = inputs.ids(row.prompt), inputs.ids(prompt)
    if ids[: len(before)] == before:
        whole = inputs.laid(row.pictures, question, prompt, ids, row.seed)
        if np.array_equal(whole.ids[: len(row.ids)], row.ids):
            return whole
    raise BadInput(f"question {number}: the tokens of the longer conversation do not begin with those that have run")


def _further(inputs: Inputs, reply: str, question: str, number: int) -> str:
    """What a conversation goes on with. Raises: BadInput."""
    if not getattr(inputs.processor, "chat_template", None):
        end = inputs.tokenizer.eos_token or " "
        return PLAIN_TURN.format(answer=reply, end=end, question=question)
    said = [("user", "?"), ("assistant", reply), ("user", question)]
    talk = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    write = inputs.processor.apply_chat_template
    first, whole = (write(part, add_generation_prompt=True, tokenize=False) for part in (talk[:1], talk))
    if not whole.startswith(first):
        raise BadInput(f"question {number}: the chat template does not put a second turn behind the first")
    return whole[len(first) :]
