"""A conversation through the gate: the first question decides, later ones go behind what is left of the picture.

talk = gate.talk("chart.png")
print(talk.ask("Which bar is highest?"), talk.ask("And lowest?"), talk.records[-1].share)
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from foveate.models.inputs import Row
from foveate.models.ledger import Ledger, charge_answers, charge_turn
from foveate.models.passes import Pass
from foveate.models.turns import continued
from foveate.plans.plan import UNCOMPRESSED
from foveate.serving.gate import Gate
from foveate.serving.record import Record, record_of
from foveate.serving.requests import Request, Unsupported, asked, from_pictures

_log = logging.getLogger(__name__)


class Conversation:
    """Several questions about what one row shows, one after another.

    The first question is decided and compressed as in `Gate.answer`. A later one is put behind the cache that it left:
    the picture does not run again, and its plan stays. Where that cannot be (the first answer was made uncompressed, or
    something failed), the model itself answers, the whole conversation in front of it: as everywhere in the gate, the
    answer comes first.

    Costs are those of the conversation so far, uncompressed likewise: what an uncompressed cache would have cost. A
    conversation holds its cache as long as it lives. Not for several threads at once.

    Args:
        gate: through which it goes.
        shown: a picture or a video, or a sequence of them.

    Attributes:
        turns: (question, answer) so far.
        records: of each turn, see `Record`.
    """

    def __init__(self, gate: Gate, shown: Any) -> None:
        self.gate, self.shown = gate, shown
        self.turns: list[tuple[str, str]] = []
        self.records: list[Record] = []
        self._row: Row | None = None  # the conversation up to its last question
        self._pass: Pass | None = None  # behind it, where one could be kept

    def ask(self, question: str, max_new_tokens: int = 16, **settings: Any) -> str:
        """The answer to the next question.

        Args:
            question: the next one.
            max_new_tokens: longest answer.
            settings: of `generate`, such as `do_sample` or `num_beams`; none = greedy.
        Raises:
            BadInput: what cannot be put to the model. Unsupported: settings that cannot be followed.
        """
        request = from_pictures(self.gate.host, [self.shown], [question], asked(max_new_tokens, settings))
        if request.settings.answers > 1:
            raise Unsupported(f"num_return_sequences = {request.settings.answers}: a conversation goes on from one")
        if self._row is None:
            ids, record = self._first(request)
        else:
            row = continued(self.gate.host.inputs, self._row, self.turns[-1][1], question, 0)
            ids, record = self._further(replace(request, rows=[row]))
        self._row = request.rows[0] if self._row is None else row
        self.turns.append((question, self.gate.host.inputs.text(ids)))
        self.records.append(record)
        self.gate._note([record])
        return self.turns[-1][1]

    def _first(self, request: Request) -> tuple[list[int], Record]:
        try:
            (answers,), (record,), p = self.gate._run(request, [0])
        except Exception:
            _log.warning("gate: a conversation is begun uncompressed after an exception", exc_info=True)
            (ids,), record = self.gate._uncompressed(request, 0, "compressor")
            return ids, record
        if record.ledger is p.ledger[0]:  # else what ran does not count
            self._pass = p
        return answers[0], record

    def _further(self, request: Request) -> tuple[list[int], Record]:
        question, before = request.rows[0].question, self.records[-1]
        if self._pass is not None:
            try:
                p = self._pass.follow([question], [self.turns[-1][1]])
                p.answer(request.settings)
                record = record_of(p, 0, before.plan, before.reason, before.decisions)
                self._pass = p
                return p.generated[0], replace(record, full=self._full(before, request, p.ran[0]))
            except Exception:
                _log.warning("gate: a conversation goes on uncompressed after an exception", exc_info=True)
                self._pass = None
        (ids,), record = self.gate._uncompressed(request, 0, "compressor" if before.plan.active else before.reason)
        spent = record.ledger
        spent.take(before.ledger)  # the whole conversation ran anew
        return ids, replace(record, plan=UNCOMPRESSED, full=self._full(before, request, [len(ids)]), ledger=spent)

    def _full(self, before: Record, request: Request, ran: list[int]) -> int:
        """FLOPs of the conversation over an uncompressed cache."""
        ledger, host, (old, new) = Ledger(), self.gate.host, (len(self._row.ids), len(request.rows[0].ids))
        charge_turn(ledger, host.shape, [old] * host.decoder_depth, new - old)
        charge_answers(ledger, host.shape, [new] * host.decoder_depth, ran)
        return before.full + ledger.total
