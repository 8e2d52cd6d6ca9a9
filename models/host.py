"""The contract of hosts: a multimodal model, opened so that it can be run stage by stage."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveate.compressors.base import Compressor, Grid, InputKnob, KVReducer, Reducer, Resampler, Streamer
from foveate.compressors.learned import Learned, Projector, Widths, no_weights
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models.decode_signals import DECODE_KINDS
from foveate.models.decoder import Decoder
from foveate.models.decoder_signals import DECODER_KINDS
from foveate.models.errors import CountMismatch, HostError
from foveate.models.fingerprint import fingerprint
from foveate.models.inputs import Framed, Inputs, Pictures, PromptShape, Row, View
from foveate.models.placing import device_of
from foveate.models.reselect import ANSWER_KIND
from foveate.models.text_tower import TextTower
from foveate.models.tower import Tower
from foveate.models.visual import VisualState
from foveate.plans.cost import HostShape
from foveate.plans.plan import Plan

if TYPE_CHECKING:
    from foveate.models.ledger import Ledger
    from foveate.models.passes import Pass
    from foveate.models.streaming import Streamed, Video

BASES: dict[str, tuple[type[Compressor], ...]] = {
    "input": (InputKnob,),
    "encoder": (Reducer,),
    "outside": (Reducer,),
    "projector": (Reducer, Resampler, Streamer),
    "prefill": (Reducer,),
    "decode": (KVReducer,),
}
"""Which bases can act at a stage."""


@dataclass(frozen=True)
class Score:
    """One row's accepted answers under the compressed cache.

    Attributes:
        logprob: natural logarithm of each answer's probability, end token included.
        greedy: whether greedy decoding gives exactly this answer (arg-max right at every position, the end included).
    """

    logprob: list[float]
    greedy: list[bool]


class Host(ABC):
    """A multimodal model, run through its own submodules: the model itself is never changed.

    A family says what its parts are (`parts`, `inputs_of`) and how they join (`project`, and where it needs them
    `project_extra`, `newline`, `prompt_shape`, `refuses`).

    Args:
        model: with weights, on its device.
        processor: its processor.
        text: the text tower beside it, where there is one.
        name: for messages and reports.
        config: the content of config.json, for the fingerprint; None = the model's own.
    Raises:
        UnsupportedModel: a part or a setting that cannot be opened.

    Attributes:
        name: as it was loaded.
        fingerprint: SHA-256 over configuration and a sample of the weights.
        shape: for the cost model.
        grid: of the tokens of one view of a usual picture.
        signals: kinds that it can give.
        device, dtype: where it runs, and in what numbers.
        encoder_depth, decoder_depth: blocks and layers that run.
        tower, decoder, text, inputs: the parts that a pass runs.
        cls_stays: the decoder reads the tower's CLS too; protected, not counted.
        ends: token ids that end an answer.
        learned: networks of learned methods by (stage, name), see `models.learned`.
        unusable: (stage, name) -> why the weights found for it are not among them.
    """

    model_class: ClassVar[Any]
    name: str
    fingerprint: str
    shape: HostShape
    grid: Grid
    signals: frozenset[str]
    device: torch.device
    dtype: torch.dtype
    tower: Tower
    decoder: Decoder
    text: TextTower | None
    inputs: Inputs
    ends: frozenset[int]
    cls_stays: bool = False

    def __init__(
        self,
        model: Any,
        processor: Any,
        text: TextTower | None = None,
        name: str = "",
        config: dict[str, Any] | None = None,
    ) -> None:
        self.check(model.config, name)
        self._open(model.eval(), name, text)
        self.inputs = self.inputs_of(processor)
        self.inputs.beside = self.text
        ends = model.generation_config.eos_token_id
        ends = self.inputs.tokenizer.eos_token_id if ends is None else ends
        self.ends = frozenset([ends] if isinstance(ends, int) else ends)
        self.fingerprint = fingerprint(config or json.loads(model.config.to_json_string()), model)

    @classmethod
    def on_paper(cls, config: Any, name: str, text: TextTower | None = None) -> Self:
        """A host of a configuration alone: it can say what it would cost, not run. Raises: UnsupportedModel."""
        cls.check(config, name)
        self = cls.__new__(cls)
        with torch.device("meta"):  # parameters have shapes and no memory
            model = cls.model_class_of(config)(config).to(getattr(config, "dtype", None) or torch.float32)
        self._open(model, name, text)
        return self

    def _open(self, model: Any, name: str, text: TextTower | None) -> None:
        self.model, self.name, self.text = model, name or model.config.model_type, text
        self.parts()
        self.device = device_of(self.decoder.model.embed_tokens)
        self.dtype = self.decoder.head.weight.dtype
        kinds = {"keys", "features", "block_states", "cls_states", "cls_attention", "received_attention"}
        kinds |= {"frame_vectors", "cls_rank", "glimpse_query", "tower_levels", "spoken"}
        kinds |= {*DECODER_KINDS, *DECODE_KINDS, ANSWER_KIND}
        kinds |= {"attention_map"} if self.tower.merge == 1 else set()  # of tokens, which units of patches have not
        beside = {"question", "text_similarity", "frame_similarity", "phrase_similarity"} if text else set()
        self.signals = frozenset(kinds | beside)
        self.learned: dict[tuple[str, str], nn.Module] = {}
        self.unusable: dict[tuple[str, str], str] = {}
        self._beside_question: int | None = None

    # -- what a family says ------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def check(cls, config: Any, name: str) -> None:
        """Refuses what cannot be opened, before any weight is read. Raises: UnsupportedModel."""

    @classmethod
    def model_class_of(cls, config: Any) -> Any:
        """The HF class that loads this configuration."""
        return cls.model_class

    @abstractmethod
    def parts(self) -> None:
        """Sets `tower`, `decoder`, `grid`, `shape` and, where it is so, `cls_stays`; `model` may be without data."""

    @abstractmethod
    def inputs_of(self, processor: Any) -> Inputs:
        """How this family's pictures and prompts are made ready."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The projector: (..., merge * C) -> (..., D), each token on its own."""

    def matrices(self) -> Projector:
        """The projector's weights, where it is linear layers with GELU between and nothing else; else ()."""
        return ()

    def project_extra(self, extra: Tensor) -> Tensor:
        """The projectors of the levels that ride along: (..., L, merge * C) -> (..., L, D)."""
        raise NotImplementedError(f"{self.name}: its tower has no levels")

    def newline(self) -> Tensor:
        """(D,) what stands at a newline entry."""
        raise NotImplementedError(f"{self.name}: its prompts have no newlines")

    def mixed(self, picture: Framed, x: Sequence[Tensor]) -> list[Tensor]:
        """What a picture's entries hold where they are mixtures: each view's tokens (n, D) -> (shown, D)."""
        raise NotImplementedError(f"{self.name}: an entry of its prompts is one token")

    def prompt_shape(self, n_text: int) -> PromptShape:
        """A prompt with one picture of the usual size and `n_text` words."""
        return PromptShape(n_text, (self.grid,))

    def reshaped(self, shape: PromptShape, grids: Sequence[Grid]) -> PromptShape:
        """What `relaid` makes of a row's shape. Raises: HostError where that cannot be told from the shape."""
        if shape.shown or shape.newlines:
            raise HostError(f"{self.name}: views of these prompts keep their grids")
        words = 0
        if shape.frames > 1 and shape.layouts:  # all views are videos that bring words along
            each = zip(shape.layouts, shape.grids, grids, strict=True)
            words = sum(film.by_frames[new[0] - 1] - film.by_frames[old[0] - 1] for film, old, new in each)
        return replace(shape, grids=tuple(grids), n_text=shape.n_text + words)

    def refuses(self, stage: str, method: type[Compressor]) -> str | None:
        """This family's own reason why a method cannot run at a stage, or None."""
        return None

    # -- what a pass needs -------------------------------------------------------------------------------------------

    def open(self, images: Sequence[Pictures], questions: Sequence[str]) -> Pass:
        """A pass over rows of one question each, with one picture or several; nothing has run.

        Raises:
            BadInput: a picture that does not decode, a question that cannot be put; the message names the row.
        """
        from foveate.models.passes import Pass  # it needs this module's classes

        if self.device.type == "meta":
            raise HostError(f"{self.name}: only its configuration was read, it cannot run")
        return Pass(self, self.inputs.rows(images, questions))

    def stream(
        self,
        video: Video,
        question: str,
        method: str | Compressor,
        keep: float | None = None,
        *,
        memory: int | None = None,
        frames: int | None = None,
        window: int = 16,
    ) -> Streamed:
        """A pass over a video that is never there whole, behind the projector: see `models.streaming` for what is held.

        Args:
            video: frames, or some of them together, in order; an iterator is read once.
            question: about all of it.
            method: one for streams, of the stage `projector` or a `windowed` one, or its name.
            keep: share of the video's tokens that stays; needs `frames`, unless the method has windows.
            memory: instead, whole frames that the memory has room for.
            frames: how many will come at most, where that is known.
            window: frames that the tower gets at a time.
        Raises:
            ValueError: neither `keep` nor `memory` or both, a method that is not for streams, a family without them, or
                a video that cannot be used; one line each.
        """
        from foveate.models.streaming import stage_of, stream  # it needs this module's classes

        chosen = self.make(stage_of(method), method) if isinstance(method, str) else method
        return stream(self, video, question, chosen, keep, memory, frames, window)

    def pixels(self, views: Sequence[View]) -> Tensor:
        """(B, 3, H, W) normalised views of equal size, in the model's dtype."""
        return self.inputs.pixels(views).to(self.device, self.dtype)

    def relaid(self, row: Row, grids: Sequence[Grid]) -> Row:
        """The row with its views at other grids. Raises: HostError where the family's views cannot shrink."""
        return self.inputs.relaid(row, grids)

    def question_tokens(self, n_text: int) -> int:
        """What a question whose prompt has `n_text` words is for the text tower, in tokens."""
        if self._beside_question is None:
            self._beside_question = self.inputs.n_text("") - len(self.text.ids(""))
        return max(1, min(self.text.limit, n_text - self._beside_question))

    def phrase_tokens(self, shape: PromptShape) -> tuple[int, ...]:
        """Tokens of each phrase of a question; where a shape does not know, as if each token were one."""
        if shape.phrases is not None or self.text is None:
            return shape.phrases or ()
        whole, around = self.question_tokens(shape.n_text - shape.newlines), len(self.text.ids(""))
        return (1 + around,) * max(0, whole - around) + (whole,)

    def no_tokens(self) -> VisualState:
        """The state of a view that is left out."""
        none = torch.zeros(0, dtype=torch.long, device=self.device)
        vit = self.shape.vit
        width = torch.zeros(0, vit.dim * vit.merge, dtype=self.dtype, device=self.device)
        place = none.reshape(0, self.decoder.coordinates)
        return VisualState(width, none.float(), none, none, place, self.grid, whole=False, renumber=True)

    # -- what can be known before anything runs ----------------------------------------------------------------------

    @property
    def encoder_depth(self) -> int:
        """Blocks of the tower that run."""
        return self.tower.depth

    @property
    def decoder_depth(self) -> int:
        """Layers of the decoder."""
        return self.decoder.depth

    @property
    def n_visual(self) -> int:
        """Visual tokens of one picture of the usual size."""
        return self.prompt_shape(1).n_visual

    def depth(self, stage: str) -> int:
        """The depth that methods at a stage are told: decoder layers at `prefill` and `decode`, else encoder blocks."""
        return self.decoder_depth if stage in ("prefill", "decode") else self.encoder_depth

    @property
    def widths(self) -> Widths:
        """What the network of a learned method must fit."""
        vit, decoder = self.shape.vit, self.shape.decoder
        return Widths(
            visual=vit.dim * vit.merge,
            decoder=decoder.dim,
            text=0 if self.text is None else self.text.width,
            encoder_depth=self.encoder_depth,
            decoder_depth=self.decoder_depth,
            grid=self.grid,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
        )

    def make(self, stage: str, name: str) -> Compressor:
        """A method as this host runs it: a learned one with its weights, where there are any. Raises: ValueError."""
        method = make(stage, name)
        return replace(method, network=self.learned.get((stage, name))) if isinstance(method, Learned) else method

    def resized(self, knob: InputKnob, grid: Grid, count: int) -> Grid:
        """The grid that an input knob wants of a view. Raises: CountMismatch where it has more tokens than asked."""
        wanted = knob.target(grid, count)
        if wanted[0] > grid[0] or min(wanted) < 1 or wanted[0] * wanted[1] * wanted[2] > count:
            raise CountMismatch(f"{knob.name}: grid {wanted} for at most {count} tokens of {grid}")
        return wanted

    def sites(self, stage: str, method: Compressor | None, n: int, count: int) -> list[tuple[int, int]]:
        """Where a method acts inside the tower or the decoder, checked; nothing for None. One with `bypass` acts on
        every layer from its first site on.

        Raises:
            CountMismatch: layers out of order or range (a cut in the decoder comes before layer 1 at the earliest), or
                counts that grow.
        """
        if method is None:
            return []
        sites, depth, first = method.sites(n, count, self.depth(stage)), self.depth(stage), int(stage == "prefill")
        layers, left = [layer for layer, _ in sites], [n, *(c for _, c in sites)]
        ordered = layers == sorted(set(layers)) and left == sorted(left, reverse=True) and left[-1] >= 1
        if not sites or not ordered or not first <= layers[0] <= layers[-1] < depth:
            limits = f"layers are {first}..{depth - 1}, ascending, counts falling"
            raise CountMismatch(f"{method.name}: sites {sites} for {n} tokens; {limits}")
        if not method.bypass:
            return sites
        latest = [max(i for i, at in enumerate(layers) if at <= layer) for layer in range(layers[0], depth)]
        return [(layer, sites[i][1]) for layer, i in zip(range(layers[0], depth), latest, strict=True)]

    def supports(self, stage: str, name: str, frames: int = 1) -> str | None:
        """Why a method cannot run here, or None where it can. "none" and "blind" always can.

        Args:
            stage: where it shall act.
            name: of the method.
            frames: of what it shall act on: 1 = of a picture.
        """
        reason, key = self.forbids(stage, name, frames), (stage, name)
        if reason is None and key not in self.learned and getattr(COMPRESSORS.get(key), "learned", False):
            return self.unusable.get(key) or no_weights(COMPRESSORS[key])
        return reason

    def forbids(self, stage: str, name: str, frames: int = 1) -> str | None:
        """The same, weights apart: whether a learned method could be trained for this host."""
        if name == "none" or (name == "blind" and stage == "input"):
            return None
        cls = COMPRESSORS.get((stage, name))
        if cls is None:
            near = get_close_matches(name, [n for s, n in COMPRESSORS if s == stage], n=3)
            return f"no method {name!r} at stage {stage!r}" + (f"; near: {', '.join(near)}" if near else "")
        if not issubclass(cls, BASES[stage]):
            return f"{name}: a {cls.__mro__[1].__name__} cannot act at {stage!r} in this host"
        if stage == "encoder" and self.tower.merge > 1:
            return f"{name}: acts on patches, and this host's connector wants whole units of {self.tower.merge}"
        if issubclass(cls, (Resampler, Streamer)) and self.shape.deepstack:
            return f"{name}: makes new tokens, and this host adds features of the old ones in later layers"
        if cls.modality == "video" and frames == 1:
            return f"{name}: is for videos, a picture is one frame"
        if cls.windowed and self.decoder.coordinates > 1:
            return f"{name}: numbers places anew for each window, and this decoder rotates by time, row and column"
        if (reason := self.refuses(stage, cls)) is not None:
            return f"{name}: {reason}"
        missing = {s.kind for s in make(stage, name).signals(self.depth(stage))} - self.signals
        return f"{name}: needs the signal {', '.join(sorted(missing))}, which this host has not" if missing else None

    def forecast(self, plan: Plan, shape: PromptShape, new_tokens: int = 0, turns: int = 1) -> Ledger:
        """What a pass by this plan will cost, known before acting; adaptive methods at their ceiling.

        Args:
            plan: which methods at which ratios.
            shape: of the row (`Row.shape`), or of a usual one (`prompt_shape`).
            new_tokens: tokens generated, the end token included; 0 = none.
            turns: questions about the pictures, all of this length: what no question guides runs once.
        Raises:
            ValueError: a method that this host cannot run, or a count that it cannot give.
        """
        from foveate.models.forecast import forecast  # it needs this module's classes

        return forecast(self, plan, shape, new_tokens, turns)
