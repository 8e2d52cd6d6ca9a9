"""CompressionEnv: one input, one decision per stage, on a live model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from foveate.controller.observation import Layout
from foveate.envs.episode import Episode, Terms
from foveate.envs.inputs import Input, ListSource, Source, TaskSource
from foveate.envs.live import Reference, feature_flops, judge, look, reference_of, token_features
from foveate.envs.masks import ANSWER_TOKENS, STOP_GROUP, Masks
from foveate.envs.quality import check_answers, check_mode, quality_of
from foveate.plans.plan import STAGES
from foveate.plans.portfolio import ActionTable, Portfolio

if TYPE_CHECKING:
    from foveate.models.host import Host

OPTIONS = ("lam", "budget", "input", "index")


class CompressionEnv(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Where, with which method and how hard to compress the visual tokens of one input.

    ## Actions
    `MultiDiscrete([M, R])`: row m of the action table (row 0 = no compression) and keep-ratio level r (level 0 = all).
    Only pairs with `mask[m, r] == 1` are legal. Anything else raises a ValueError that names stage, action and reason;
    the episode is then as before.

    ## Observations
    | key | type | min | max | meaning |
    |---|---|---|---|---|
    | `mask` | int8 (M, R) | 0 | 1 | the legal actions at this stage |
    | `vector` | float32 (D,) | | | what is known, see `foveate.controller.observation`: |
    | - stage | 6 entries | 0 | 1 | one-hot of the stage that is due |
    | - log_lambda | 1 | -2 | 1 | log10(lambda) / 2 |
    | - has_budget | 1 | 0 | 1 | whether there is a hard limit |
    | - budget_left, spent | 2 | 0 | 2 | share of the uncompressed FLOPs; budget_left is 2 without a budget |
    | - tokens_left | 1 | 0 | 1 | share of the visual tokens still there |
    | - turns | 1 | 0 | 1 | log2(questions) / 4: 0 here, an episode is one question |
    | - pixels, question | 1 + n each | 0 | 1 | seen flag, features; known from the start. Where there are videos among
    the inputs, their time features are part of pixels, 0 for pictures |
    | - block1, encoder, layer1 | 1 + n each | host's | host's | seen flag, token features; shown from the stop
    `encoder`, `outside`, `prefill` on |

    Token features of a stop are computed, and paid for, when a decision is due there. A stage with one legal action
    passes by itself; where an episode leaves nothing to decide at all, it starts at `input` with that one action.

    ## Rewards
    At every step -lambda * (FLOPs spent since the last one) / (FLOPs of the uncompressed pass); with the last step the
    quality q of the answer is added. FLOPs are those of the host's ledger: compressors, signals and features included,
    and an answer of `answer_tokens` tokens. q is "exact": 1 where greedy decoding gives an accepted answer; "graded":
    (1 - b) * exact + b * P(best accepted answer); "label_free": min(p_plan(y0), p_full(y0)), with y0 the uncompressed
    model's own answer.

    ## Start
    An input, lambda (log-uniform in `lam`) and a hard budget (with chance `budget_share`, uniform in `budget`, never
    below the cheapest plan) are drawn. `reset(options=...)` may fix "lam", "budget" (a share, or None), "input" (an
    `Input`) and "index" (of the source). A fixed budget below the cheapest plan raises a ValueError that names that
    plan.

    ## End
    `terminated` behind stage `decode`. Never truncated. The last observation repeats the last stage with every action
    masked but none. `info` holds input, regime, family, lam, budget, plan, stage, cost (share so far) and, at the end,
    quality, correct, prob, tokens, kv.

    ## Version history
    v0: first version.

    Args:
        host: an opened model, or what `load_host` takes.
        portfolio: what is on offer, or the name or path of its file.
        inputs: what episodes are drawn from; None = `tasks` of `split`.
        tasks: names of built-in tasks.
        split: their split.
        lam, budget, budget_share, quality, b, one_shot: see `foveate.envs.episode.Terms`.
        answer_tokens: length of the answer that costs count.
    Raises:
        ValueError: an argument out of range, or a portfolio of which this host can run nothing.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}

    def __init__(
        self,
        host: Host | str | Path = "reference",
        portfolio: Portfolio | str | Path = "default",
        inputs: Iterable[Input] | Source | None = None,
        tasks: Sequence[str] = ("scenes", "reading", "documents", "charts", "digits", "pictures"),
        split: str = "policy-train",
        lam: tuple[float, float] = Terms.lam,
        budget: tuple[float, float] = Terms.budget,
        budget_share: float = Terms.budget_share,
        quality: str = Terms.quality,
        b: float = Terms.b,
        one_shot: bool = False,
        answer_tokens: int = ANSWER_TOKENS,
        render_mode: str | None = None,
    ) -> None:
        self.terms = Terms(tuple(lam), tuple(budget), budget_share, quality, b, one_shot)
        self.host = _opened(host)
        self.portfolio = portfolio if isinstance(portfolio, Portfolio) else Portfolio.from_yaml(portfolio)
        self.table = ActionTable.from_portfolio(self.portfolio)
        costs = None if one_shot else partial(feature_flops, self.host)
        self.masks = Masks(self.host, self.table, answer_tokens, costs)
        self.source = _source(inputs, tasks, split)
        self.layout = Layout.of(token_features(), getattr(self.source, "video", False))
        low, high = self.layout.bounds()
        self.observation_space = spaces.Dict(
            {"vector": spaces.Box(low, high, dtype=np.float32), "mask": spaces.MultiBinary(self.table.shape)}
        )
        self.action_space = spaces.MultiDiscrete(self.table.shape)
        self.render_mode = render_mode
        self.episode: Episode | None = None
        self._b = b
        self._last_reference: tuple[Input, Reference] | None = None

    def set_b(self, b: float) -> None:
        """The share of the graded part from the next verdict on. Raises: ValueError outside [0, 1]."""
        check_mode(self.terms.quality, b)
        self._b = b

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new episode; options as in the class docstring. Raises: ValueError on an unknown or unfit option."""
        super().reset(seed=seed)
        options = dict(options or {})
        if unknown := set(options) - set(OPTIONS):
            raise ValueError(f"reset: unknown option {min(unknown)!r}; known: {', '.join(OPTIONS)}")
        input = self._input(options)
        check_answers(input.id, input.answers, self.terms.quality)
        self._pass = self.host.open([input.image], [input.question])
        shape = self._pass.shapes[0]
        lam = options["lam"] if "lam" in options else self.terms.draw_lambda(self.np_random)
        if "budget" in options:
            budget = options["budget"]
        else:
            budget = self.terms.draw_budget(self.np_random, self.masks.least(shape) / self.masks.full(shape))
        self.episode = Episode.begin(self.masks, input, shape, lam, budget)
        self._ran = 0
        self._reach_stop()
        return self.episode.observe(self.layout), self.episode.info()

    def _input(self, options: Mapping[str, Any]) -> Input:
        if "input" in options:
            return options["input"]
        return self.source[options["index"]] if "index" in options else self.source.draw(self.np_random)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Takes an action at the stage that is due, and runs the host up to the next decision.

        Raises:
            ValueError: not a legal action (the message names stage, action and reason), or no episode is under way.
        """
        if self.episode is None:
            raise ValueError("step: no episode is under way; reset comes first")
        episode = self.episode
        episode.act(action)
        self._reach_stop()
        info, quality = episode.info(), 0.0
        if episode.done:
            quality, about = self._verdict()
            info |= about | {"cost": episode.spent / episode.full}
        return episode.observe(self.layout), quality - episode.lam * episode.pay(), episode.done, False, info

    def _reach_stop(self) -> None:
        """Runs the host up to the stage that is due and shows what it reveals; in one-shot mode, to the end only."""
        episode, p = self.episode, self._pass
        if self.terms.one_shot and not episode.done:
            return
        for stage in STAGES[self._ran : episode.at]:
            p.run_stage(stage, [episode.plan])
        self._ran = episode.at
        if not episode.done and episode.stage in STOP_GROUP:
            episode.groups[STOP_GROUP[episode.stage]] = look(p, episode.stage)[0]
        episode.spent = float(p.ledger[0].total)
        if episode.at and not episode.done:
            episode.tokens_left = p.counts[STAGES[episode.at - 1]][0] / episode.shape.n_tokens

    def _verdict(self) -> tuple[float, dict[str, Any]]:
        """Quality and what the final info says; the answer goes on the bill."""
        episode = self.episode
        reference = self._reference(episode.input) if self.terms.quality == "label_free" else None
        own = [None if reference is None else reference.answer]
        verdict = judge(self._pass, [episode.input], own, self.masks.answer_tokens)[0]
        bill = verdict.bill
        episode.spent = float(bill.own + bill.features)
        prob = None if reference is None else reference.prob
        quality = quality_of(verdict.outcome, self.terms.quality, self._b, prob)
        about = {"correct": verdict.outcome.correct, "prob": verdict.outcome.prob}
        return quality, {"quality": quality, **about, "tokens": verdict.tokens, "kv": verdict.kv}

    def _reference(self, input: Input) -> Reference:
        if self._last_reference is None or self._last_reference[0] is not input:
            self._last_reference = (input, reference_of(self.host, input))
        return self._last_reference[1]

    def render(self) -> str | None:
        """One line of text: input, stage, plan so far and cost share."""
        if self.render_mode != "ansi" or self.episode is None:
            return None
        info = self.episode.info()
        return f"{info['input']} at {info['stage']}: {info['plan']}, cost {info['cost']:.3f} of the uncompressed pass"


def _opened(host: Host | str | Path) -> Host:
    """An opened host."""
    if isinstance(host, str | Path):
        from foveate.models import load_host

        return load_host(host)
    return host


def _source(inputs: Iterable[Input] | Source | None, tasks: Sequence[str], split: str) -> Source:
    """Where episodes get their inputs."""
    if inputs is None:
        return TaskSource(tasks, split)
    return inputs if hasattr(inputs, "draw") else ListSource(inputs)
