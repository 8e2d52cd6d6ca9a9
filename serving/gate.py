"""The gate: a controller in front of a model, with one compression plan for every row.

gate = Gate(model, processor, "policy.fov", budget=0.4)
ids = gate.generate(**processor(images=..., text=..., return_tensors="pt"), max_new_tokens=16)
print(gate.last[0].plan.label(), gate.last[0].share, gate.counters)

with gate:  # the same through the model's own method
    ids = model.generate(**inputs)
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.controller.artefact import Artefact, ControllerError, load
from foveate.controller.decision import Controller
from foveate.controller.observation import TOKEN_GROUPS, check_order
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families import FAMILIES, family
from foveate.models.features import TOKEN_FEATURES
from foveate.models.host import Host
from foveate.models.inputs import Row
from foveate.models.learned import attach
from foveate.models.passes import Pass
from foveate.models.sampling import Settings, ended
from foveate.models.text_tower import FOLDER, TextTower
from foveate.plans.plan import UNCOMPRESSED
from foveate.serving.deciding import Course, Dials, Driver
from foveate.serving.record import Record, record_of, uncompressed
from foveate.serving.requests import (
    Request,
    Unsupported,
    as_clip,
    as_tensors,
    asked,
    from_pictures,
    from_tensors,
    tensors,
)

if TYPE_CHECKING:
    from foveate.serving.talk import Conversation

DECIDED = ("policy", "regression", "none")
"""Reasons of rows that the controller decided, or that left nothing to decide. Any other is a fall-back."""

_log = logging.getLogger(__name__)


class Gate:
    """Lets a controller choose how each request is compressed.

    A row that the controller cannot judge is answered uncompressed and counted; the gate raises nothing that the
    model alone would not raise. Where `max_flops` is set, such a row gets the mildest plan within it, unless what has
    run cannot be trusted (NaN, an exception) or no plan is within it: then the answer comes first.

    `generate` covers greedy decoding, sampling and beams: of `images` and `questions`, or of what the family's
    processor returns, one picture or video a row or several. Any other call goes to the model as it came, before
    anything has run, and counts as "unsupported"; `Record.why` says what the gate could not take. `talk` holds a
    conversation: further questions go behind what the first one left of the picture.

    Args:
        model: an HF model of a family in `foveate.models.families`, or a host that `load_host` opened.
        processor: the model's; not needed beside a host.
        controller: a file, an artefact or a controller.
        budget: mean cost as a share of the uncompressed pass, by the controller's calibration.
        lam: trade-off weight instead; neither = the controller's own.
        max_flops: hard limit on the FLOPs of one row, its longest possible answer and the decisions included.
        deadline: seconds that the decisions of one call may take; what is not decided by then is not compressed.
    Raises:
        ControllerError: the controller is for another model, or its file is damaged.
        UnsupportedModel: a family that no host here can open.
        ValueError: a dial outside its range, or a portfolio of which this model can run nothing.

    Attributes:
        host: the opened model.
        controller: what decides.
        counters: rows so far, by reason (see `Record.reason`), and in all as "rows".
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        controller: Controller | Artefact | str | Path | None = None,
        *,
        budget: float | None = None,
        lam: float | None = None,
        max_flops: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.host = host_of(model, processor)
        self.controller = controller_of(controller, self.host)
        self.counters: Counter[str] = Counter()
        for name, value in (("max_flops", max_flops), ("deadline", deadline)):
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: {value} must be a positive number")
        given = lam is not None or budget is not None
        chosen = self.controller.dial(lam=lam, budget=budget) if given else self.controller.lam
        self.dials = Dials(chosen, max_flops, deadline)
        self._driver = Driver(self.host, self.controller)
        self._plain = type(self.host.model).generate.__get__(self.host.model)  # the untouched one, whoever patched it
        self._patched: list[Any] = []
        self._lock, self._local = threading.Lock(), threading.local()

    @property
    def last(self) -> list[Record]:
        """What became of each row of this thread's last call."""
        return list(getattr(self._local, "records", ()))

    def generate(self, inputs: Tensor | None = None, **arguments: Any) -> Tensor:
        """As the model's `generate`: token ids (B, L + answer), several for a row where so many are asked for; rows
        that end earlier padded.

        Args:
            inputs: input_ids, as `generate` takes them by position.
            arguments: what the processor returns (input_ids, attention_mask, pixel_values and what its family has
                beside them) or `images` and `questions` (one picture or video, or a sequence of them, and one question
                each); and settings of `generate`.
        Raises:
            BadInput: `images` or `questions` that cannot be put to the model.
            Exception: what the model itself raises on such a call.
        """
        if inputs is not None:
            arguments["input_ids"] = inputs
        images, questions = arguments.pop("images", None), arguments.pop("questions", None)
        pictured = images is not None or questions is not None
        try:
            if pictured:
                request = from_pictures(self.host, images or (), questions or (), arguments)
            else:
                request = from_tensors(self.host, arguments)
        except Exception as reason:  # whatever it is, it is the model's to answer or to refuse
            known = isinstance(reason, Unsupported)
            _log.log(
                logging.INFO if known else logging.WARNING, "gate: left to the model: %s", reason, exc_info=not known
            )
            if pictured:  # raises what is wrong with them
                arguments = {**as_tensors(self.host, images or (), questions or ()), **arguments}
            ids = self._plain(**arguments)
            given, why = arguments.get("input_ids"), " ".join(str(reason).split())
            rows = len(given) if isinstance(given, Tensor) else 1
            self._note([Record(UNCOMPRESSED, "unsupported", why=why)] * rows)
            return ids
        answers, settings = [ids for row in self._answered(request) for ids in row], request.settings
        longest = max(map(len, answers))
        tail = [answer + [settings.pad] * (longest - len(answer)) for answer in answers]
        front = request.input_ids.repeat_interleave(settings.answers, dim=0)
        return torch.cat([front, front.new_tensor(tail)], dim=1)

    def talk(self, picture: Any) -> Conversation:
        """A conversation about a picture or video, or several: `talk(picture).ask(question)`."""
        from foveate.serving.talk import Conversation  # it needs this module's classes

        return Conversation(self, picture)

    def answer(
        self,
        images: Sequence[Any] = (),
        questions: Sequence[str] = (),
        max_new_tokens: int = 16,
        *,
        video: Any = None,
        question: str | None = None,
        **settings: Any,
    ) -> list[str]:
        """The answers as text, one for each picture, video or list of them with its question.

        Args:
            images: of each row.
            questions: of each row.
            max_new_tokens: longest answer.
            video: of one row instead of all these; see `serving.requests.as_clip` for what it may be.
            question: about it.
            settings: of `generate`, such as `do_sample` or `num_beams`; none = greedy.
        Raises:
            BadInput: what cannot be put to the model. Unsupported: settings that cannot be followed.
        """
        if video is not None or question is not None:
            if len(images) or len(questions) or video is None or question is None:
                raise BadInput("answer: give images and questions, or one video and its question")
            images, questions = [as_clip(video)], [question]
        request = from_pictures(self.host, images, questions, asked(max_new_tokens, settings))
        return [self.host.inputs.text(ids) for row in self._answered(request) for ids in row]

    def __enter__(self) -> Gate:
        model = self.host.model
        self._patched.append(vars(model).get("generate"))
        model.generate = self.generate
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._patched.pop()
        if before is None:
            del self.host.model.generate
        else:
            self.host.model.generate = before

    def _answered(self, request: Request) -> list[list[list[int]]]:
        """Token ids of each row's answers; fills `last` and `counters`."""
        every = list(range(len(request.rows)))
        try:
            answers, records, _ = self._run(request, every)
        except Exception:
            # One row's compressor may have failed: alone, each row is decided and answered as in the batch.
            _log.warning("gate: a batch of %d failed, its rows are run one by one", len(every), exc_info=True)
            answers, records = [], []
            for i in every:
                ids, record = self._alone(request, i)
                answers.append(ids)
                records.append(record)
        self._note(records)
        return answers

    def _alone(self, request: Request, i: int) -> tuple[list[list[int]], Record]:
        """One row by itself, uncompressed where that fails."""
        try:
            answers, records, _ = self._run(request, [i])
            return answers[0], records[0]
        except Exception:
            _log.warning("gate: row %d is answered uncompressed after an exception", i, exc_info=True)
            return self._uncompressed(request, i, "compressor")

    def _run(self, request: Request, index: Sequence[int]) -> tuple[list[list[list[int]]], list[Record], Pass]:
        """Some rows through the host; those whose course says so are answered anew."""
        rows, pictures = [request.rows[i] for i in index], [request.pictures[i] for i in index]
        settings, answers, records = request.settings, [], []
        longest = settings.limit * settings.width  # not below what so many sequences side by side cost
        p, courses, used = self._driver.run(rows, pictures, self.dials, longest)
        p.answer(settings)
        for at, (i, course) in enumerate(zip(index, courses, strict=True)):
            if course.redo:
                ids, record = self._uncompressed(request, i, course.reason, course, p.ledger[at].total)
            else:
                ids = p.generated[at * settings.answers : (at + 1) * settings.answers]
                record = record_of(p, at, course.plan, course.reason, tuple(course.taken), used / len(index))
            answers.append(ids)
            records.append(record)
        return answers, records, p

    def _uncompressed(
        self, request: Request, i: int, reason: str, course: Course | None = None, wasted: int = 0
    ) -> tuple[list[list[int]], Record]:
        """One row by the model's own `generate` where that can be called: no part of the gate is in it then."""
        row, settings = request.rows[i], request.settings
        answers = self._own_answers(row, settings)
        longest = max(map(len, answers))
        ran = [longest] * settings.beams if settings.beams > 1 else list(map(len, answers))
        ledger = uncompressed(self.host, row, ran)
        full = ledger.total
        if wasted:
            ledger.add("abandoned", "compressed pass", wasted)
        decisions = () if course is None else tuple(course.taken)
        n, depth = row.shape.n_visual, self.host.decoder_depth
        kept = tuple(((t, h, w), tuple(range(t * h * w))) for t, h, w in row.shape.shown or row.shape.grids)
        return answers, Record(UNCOMPRESSED, reason, decisions, ledger, full, (n,) * depth, kept)

    def _own_answers(self, row: Row, settings: Settings) -> list[list[int]]:
        """Token ids that the model itself answers with."""
        inputs = tensors(self.host, [row])
        out = self._plain(**inputs, generation_config=settings.config, **settings.beside)
        return [ended(ids, settings.ends) for ids in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def _note(self, records: list[Record]) -> None:
        self._local.records = records
        with self._lock:
            self.counters.update(record.reason for record in records)
            self.counters["rows"] += len(records)


def host_of(model: Any, processor: Any) -> Host:
    """The host of a model that is already loaded; the folder it came from may hold a text tower and weights of learned
    methods beside it.

    Raises:
        UnsupportedModel: a family that no host here can open, or no processor.
    """
    if isinstance(model, Host):
        return model
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UnsupportedModel(f"model type {kind!r} has no host here; known are {', '.join(FAMILIES)}")
    if processor is None:
        raise UnsupportedModel("processor: missing; it goes beside the model")
    folder, raw, text = Path(getattr(config, "_name_or_path", "") or "."), None, None
    if config._name_or_path and (folder / "config.json").is_file():
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weight = model.get_output_embeddings().weight
        text = TextTower.load(folder / FOLDER, processor.tokenizer, weight.dtype, weight.device)
    return attach(family(kind)(model, processor, text, config._name_or_path or kind, raw))


def controller_of(controller: Controller | Artefact | str | Path | None, host: Host) -> Controller:
    """The controller, checked against the host. Raises: ControllerError."""
    if isinstance(controller, str | Path):
        return Controller(load(controller, fingerprint=host.fingerprint, token_features=TOKEN_FEATURES))
    if isinstance(controller, Artefact):
        controller = Controller(controller)
    if not isinstance(controller, Controller):
        raise ControllerError(f"controller: needs a file, an artefact or a controller, got {type(controller).__name__}")
    artefact = controller.artefact
    if artefact.fingerprint != host.fingerprint:
        mine, theirs = host.fingerprint[:12], artefact.fingerprint[:12]
        raise ControllerError(f"controller: made for host {artefact.host!r} ({theirs}...), this host is {mine}...")
    names = dict(zip(TOKEN_GROUPS, artefact.layout.features[-len(TOKEN_GROUPS) :], strict=True))
    for group in TOKEN_GROUPS:
        try:
            check_order(group, names[group], tuple(TOKEN_FEATURES.get(group, ())))
        except ValueError as error:
            raise ControllerError(f"controller: {error}") from error
    return controller
