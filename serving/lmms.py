"""The gate as a model of lmms-eval, so that a standard harness judges it: entry-point group `lmms_eval.models`.

lmms-eval --model foveate --model_args pretrained=reference,controller=runs/demo/controller.fov,budget=0.35 --tasks ...

Nothing here imports the harness before the harness asks for it: foveate works without lmms-eval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.progress import track

from foveate.models import load_host
from foveate.plans.named import load_plan
from foveate.plans.plan import UNCOMPRESSED
from foveate.serving.gate import Gate, Record, record_of
from foveate.tasks.images import open_picture

MODEL = "foveate"
"""Its name in the harness."""

SAMPLING = {"do_sample": (None, False), "num_beams": (None, 1), "temperature": (None, 0), "n": (None, 1)}
"""Settings of a task that must have one of these values: samples are judged on greedy answers."""

IMAGE_MARK = "<image>"
"""Some tasks write it into their text; where a picture stands is the model's own business."""


def manifest() -> Any:
    """What the entry point hands to the harness: two forms of one model, the chat form preferred by the harness."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL, simple_class_path=f"{__name__}.Simple", chat_class_path=f"{__name__}.Chat")


def __getattr__(name: str) -> Any:
    """`Simple`, `Chat` and `Counts`, made when the harness asks for them: their bases are the harness's."""
    if name in ("Simple", "Chat", "Counts"):
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _classes() -> dict[str, type]:
    from lmms_eval.api.instance import TokenCounts
    from lmms_eval.api.model import lmms

    class Counts(TokenCounts):
        """Token counts of one request with what the gate did: what `--log_samples` writes under "token_counts"."""

        def __init__(self, record: Record, generated: int | None) -> None:
            super().__init__(output_tokens=generated)
            self.record = record

        def to_dict(self) -> dict[str, Any]:
            """Plain data for the log."""
            return {**super().to_dict(), **logged(self.record)}

    class Simple(Judged, lmms):
        """The form for tasks with `doc_to_visual` and `doc_to_text`."""

        is_simple = True

    class Chat(Judged, lmms):
        """The form for tasks with `doc_to_messages`."""

        is_simple = False

    return {"Counts": Counts, "Simple": Simple, "Chat": Chat}


def logged(record: Record) -> dict[str, Any]:
    """A record as a sample's log line holds it; numbers that are not known are None."""
    ledger, layers = record.ledger, record.layers
    return {
        "visual_tokens": sum(layers) / len(layers) if layers else None,
        "visual_tokens_behind": None if ledger is None else dict(ledger.tokens),
        "flops": None if ledger is None else ledger.total,
        "flops_uncompressed": record.full or None,
        "flops_share": None if ledger is None else record.share,
        "decision_share": None if ledger is None else record.decision_share,
        "kv_bytes": None if ledger is None else ledger.kv_bytes_end,
        "plan": record.plan.to_dict(),
        "plan_label": record.plan.label(),
        "plan_by": record.reason,
    }


class Judged:
    """What both forms share: the gate, or one fixed plan, behind the harness's requests.

    Args:
        pretrained: "reference", a folder or a hub id.
        learned: folder with weights of learned methods; None = the model's own.
        controller: file of an exported controller; or else
        plan: "none" (uncompressed), the name of a plan, or its YAML file: the same for every input.
        budget, lam, max_flops, deadline: dials, see `Gate`.
        max_new_tokens: longest answer where the task does not say.
        dtype: of the weights.
        device: where the model runs; None = cpu.
        batch_size: rows that run together; changes no answer.
        max_batch_size: not used; the harness hands it over.
    Raises:
        ValueError: not exactly one of controller and plan, a dial beside a plan, or a batch size that is no number.
    """

    is_simple: bool

    def __init__(
        self,
        pretrained: str = "reference",
        learned: str | None = None,
        controller: str | None = None,
        plan: str | None = None,
        budget: float | None = None,
        lam: float | None = None,
        max_flops: float | None = None,
        deadline: float | None = None,
        max_new_tokens: int = 16,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if (controller is None) == (plan is None):
            raise ValueError("model_args: needs controller=FILE or plan=NAME (plan=none: uncompressed), not both")
        dials = {"budget": budget, "lam": lam, "max_flops": max_flops, "deadline": deadline}
        dials = {name: float(value) for name, value in dials.items() if value is not None}
        if plan is not None and dials:
            raise ValueError(f"model_args: {min(dials)} goes with a controller; a plan leaves nothing to decide")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size: {batch_size!r} must be a whole number, at least 1")
        self.batch_size, self.longest = int(batch_size), int(max_new_tokens)
        self.host = load_host(pretrained, dtype, device or "cpu", learned)
        self.plan = None if plan is None else UNCOMPRESSED if plan == "none" else load_plan(plan)
        self.gate = None if controller is None else Gate(self.host, None, controller, **dials)

    @property
    def device(self) -> Any:
        """Where the model runs."""
        return self.host.device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Greedy answers, each with what the gate did. Raises: ValueError on a request that cannot be put as it is."""
        from lmms_eval.api.instance import GenerationResult

        settings = [_settings(request, self.longest) for request in requests]
        batches = list(_batches([limit for limit, _ in settings], self.batch_size))
        counts, started, out, records = _classes()["Counts"], time.perf_counter(), [], []
        for batch in track(batches, MODEL, console=Console(stderr=True)):
            pictures, questions = zip(*(self._asked(requests[i]) for i in batch), strict=True)
            texts, done = self._answers(list(pictures), list(questions), settings[batch[0]][0])
            for i, text, record in zip(batch, texts, done, strict=True):
                length = len(self.host.inputs.tokenizer.encode(text, add_special_tokens=False))
                out.append(GenerationResult(_cut(text, settings[i][1]), counts(record, length)))
            records += done
        _summarise(records, sum(result.token_counts.output_tokens for result in out), time.perf_counter() - started)
        return out

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(value, greedy) of each continuation; the choices of a question share one decision and one pass.

        The value is the continuation's log-probability, its end included. Of a multiple choice it is the negative one:
        there the harness takes the smallest value for the answer.
        """
        from lmms_eval.api.instance import GenerationResult

        counts, out = _classes()["Counts"], []
        for _, group in groupby(requests, lambda r: (r.args[0], *r.args[-3:])):
            rows = list(group)
            pictures, question = self._asked(rows[0])
            given = [row.args[1] for row in rows]
            texts = [(text if isinstance(text, str) else text(self._doc(rows[0]))).strip() for text in given]
            if not all(texts):
                raise ValueError(f"{_where(rows[0])}: a continuation is empty")
            _, (record,) = self._answers([pictures], [question], 1)
            (score,) = self.host.open([pictures], [question]).run(record.plan).score([texts])
            for text, value, greedy in zip(given, score.logprob, score.greedy, strict=True):
                pair = (-value if isinstance(text, str) else value, greedy)
                # Wrapped: the harness makes one string of a bare pair, and this way its log has the counts too.
                out.append(GenerationResult(pair, counts(record, None)))
        return out

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered. Raises: NotImplementedError."""
        raise NotImplementedError(f"{MODEL}: no tasks of several rounds; the gate answers single questions")

    def _answers(self, pictures: list[Any], questions: list[str], limit: int) -> tuple[list[str], list[Record]]:
        """Answers and records of a batch."""
        if self.gate is not None:
            return self.gate.answer(pictures, questions, limit), self.gate.last
        p = self.host.open(pictures, questions).run(self.plan)
        texts = p.decode(max_new_tokens=limit)
        return texts, [record_of(p, row, self.plan, "plan") for row in range(len(texts))]

    def _doc(self, request: Any) -> Mapping[str, Any]:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _asked(self, request: Any) -> tuple[Any, str]:
        """Picture or pictures, and the question. Raises: ValueError where a document has other media, or none."""
        where, doc = _where(request), self._doc(request)
        if self.is_simple:
            pictures, text = request.args[2](doc) or [], request.args[0]
        else:
            pictures, text = _from_messages(request.args[1](doc), where)
        if not pictures or any(isinstance(picture, dict) for picture in pictures):
            raise ValueError(f"{where}: needs pictures, has {'other media' if pictures else 'none'}")
        pictures = [open_picture(picture) if isinstance(picture, str) else picture for picture in pictures]
        return pictures[0] if len(pictures) == 1 else pictures, text.replace(IMAGE_MARK, "").strip()


def _where(request: Any) -> str:
    """Words for messages that say which request it is."""
    doc_id, task, split = request.args[-3:]
    return f"task {task!r}, split {split!r}, document {doc_id}"


def _from_messages(messages: Sequence[Mapping[str, Any]], where: str) -> tuple[list[Any], str]:
    """Pictures and text of the one user turn. Raises: ValueError where there is more than that."""
    roles = [message["role"] for message in messages]
    if roles != ["user"]:
        raise ValueError(f"{where}: the gate takes one user turn, the task has {', '.join(roles) or 'none'}")
    parts = messages[0]["content"]
    other = {part["type"] for part in parts} - {"image", "text"}
    if other:
        raise ValueError(f"{where}: needs pictures and text, has {', '.join(sorted(other))}")
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return [part["url"] for part in parts if part["type"] == "image"], "\n".join(texts)


def _settings(request: Any, longest: int) -> tuple[int, list[str]]:
    """Longest answer and stop strings. Raises: ValueError where a task asks for more than greedy decoding."""
    given = next(value for value in request.args if isinstance(value, dict))
    for name, plain in SAMPLING.items():
        if given.get(name) not in plain:
            raise ValueError(f"{_where(request)}: {name} = {given[name]!r}; answers are judged greedily here")
    until = given.get("until") or []
    limit = int(given.get("max_new_tokens") or longest)
    if limit < 1:
        raise ValueError(f"{_where(request)}: max_new_tokens = {limit} is below 1")
    return limit, [until] if isinstance(until, str) else list(until)


def _batches(limits: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in order, `size` at most together, all of one limit."""
    for _, group in groupby(range(len(limits)), limits.__getitem__):
        same = list(group)
        yield from (same[at : at + size] for at in range(0, len(same), size))


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for at in map(text.find, filter(None, until)) if at >= 0), default=len(text))]


def _summarise(records: Sequence[Record], generated: int, seconds: float) -> None:
    """Means over the run, for "throughput" in the harness's results file."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    rows = [logged(record) for record in records]
    known: Callable[[str], list[float]] = lambda name: [row[name] for row in rows if row[name] is not None]  # noqa: E731
    names = ("visual_tokens", "flops", "flops_uncompressed", "flops_share", "decision_share", "kv_bytes")
    means = {name: sum(known(name)) / len(known(name)) for name in names if known(name)}
    log_metrics(seconds, generated, generated / seconds if seconds else 0.0, means)
