"""A shard: a fixed set of environments whose requests go through one host together.

What runs in one batch depends on the shard alone, never on how many processes there are, so that trajectories are equal
bit for bit wherever their shard runs. Between two steps a shard is its `state`: plain data, from which another process
can go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from foveate.controller.observation import Layout
from foveate.envs.episode import Episode, Terms
from foveate.envs.inputs import Input, Source
from foveate.envs.live import Bill, Reference, Verdict, feature_flops, token_features
from foveate.envs.masks import ANSWER_TOKENS, STOP_GROUP, Masks
from foveate.envs.quality import check_answers, check_mode, quality_of
from foveate.plans.plan import Plan
from foveate.plans.portfolio import ActionTable, Portfolio
from foveate.rollouts.common import Observation
from foveate.rollouts.draws import episode_rng, group_id
from foveate.rollouts.worker import Ask, Seen, Worker

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape

REMEMBERED = 4096
"""Inputs whose prompt length and own answer a shard remembers."""


@dataclass(frozen=True)
class Setup:
    """What every shard of a vectorised environment is made from; can be sent to another process.

    Attributes:
        portfolio: what is on offer.
        source: what episodes draw from.
        terms: how they are drawn and paid for.
        groups, k: groups of rollouts, and rollouts in each, that share input, lambda and budget.
        shards: parts that the groups are dealt into, evenly.
        seed: of the draws.
        answer_tokens: length of the answer that costs count.
        batch: most inputs in a pass, and most rows in the decoder.
    Raises:
        ValueError: numbers below 1, or groups that the shards do not divide.
    """

    portfolio: Portfolio
    source: Source
    terms: Terms = field(default_factory=Terms)
    groups: int = 8
    k: int = 4
    shards: int = 1
    seed: int = 0
    answer_tokens: int = ANSWER_TOKENS
    batch: int = 48

    def __post_init__(self) -> None:
        if min(self.groups, self.k, self.shards) < 1 or self.groups % self.shards:
            raise ValueError(
                f"groups = {self.groups}, k = {self.k}, shards = {self.shards}: each at least 1, groups in equal shards"
            )

    @property
    def per_shard(self) -> int:
        """Environments in a shard."""
        return self.groups // self.shards * self.k

    @property
    def layout(self) -> Layout:
        """Of the observation."""
        return Layout.of(token_features(), getattr(self.source, "video", False))

    def spaces(self) -> tuple[spaces.Dict, spaces.MultiDiscrete]:
        """Observation and action space."""
        table, (low, high) = ActionTable.from_portfolio(self.portfolio), self.layout.bounds()
        vector = spaces.Box(low, high, dtype=np.float32)
        return spaces.Dict({"vector": vector, "mask": spaces.MultiBinary(table.shape)}), spaces.MultiDiscrete(
            table.shape
        )


@dataclass
class Slot:
    """One environment.

    Attributes:
        episode: where it stands.
        number: of the episode.
        features: FLOPs of the features shown so far.
        total: rewards so far.
        steps: actions so far.
    """

    episode: Episode
    number: int
    features: int = 0
    total: float = 0.0
    steps: int = 0

    def flops(self, bill: Bill) -> float:
        """FLOPs so far, of a pass that ran without looks before this one."""
        return float(bill.own + self.features)


class Shard:
    """Environments `index * per_shard` and following.

    Args:
        setup: shared by all shards.
        host: the model.
        index: which shard.
    """

    def __init__(self, setup: Setup, host: Host, index: int) -> None:
        self.setup, self.host, self.index = setup, host, index
        self.layout = setup.layout
        costs = None if setup.terms.one_shot else partial(feature_flops, host)
        self.masks = Masks(host, ActionTable.from_portfolio(setup.portfolio), setup.answer_tokens, costs)
        self.worker = Worker(host, setup.answer_tokens, setup.batch)
        self.seed, self.b = setup.seed, setup.terms.b
        self.slots: list[Slot] = []
        self._drawn: OrderedDict[tuple[int, int], tuple[Input, PromptShape, float, float | None]] = OrderedDict()
        self._references: OrderedDict[str, Reference] = OrderedDict()

    # -- the environment's side --------------------------------------------------------------------------------------

    def reset(self, first: bool = False) -> Observation:
        """The next episode of every environment; the first of the seed where asked, or where there was none."""
        numbers = [0] * self.setup.per_shard if first or not self.slots else [slot.number + 1 for slot in self.slots]
        self.slots = [self._begin(env, number) for env, number in enumerate(numbers)]
        self._look(self.slots)
        return self._observe(self.slots)

    def step(self, actions: Sequence[Any]) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One action (m, r) for each environment; those that end begin the next episode.

        Raises:
            ValueError: an action that is not legal; the message names environment, stage and reason, and nothing has
                changed.
        """
        self.check(actions)
        for slot, action in zip(self.slots, actions, strict=True):
            slot.episode.act(action)
        over = [env for env, slot in enumerate(self.slots) if slot.episode.done]
        ended = {env: self.slots[env] for env in over}
        for env in over:
            self.slots[env] = self._begin(env, ended[env].number + 1)
        verdicts = self._look(self.slots, list(ended.values()))
        reward, infos = np.zeros(len(self.slots)), [{} for _ in self.slots]
        for (env, slot), verdict in zip(ended.items(), verdicts, strict=True):
            quality, infos[env] = self._verdict(env, slot, verdict)
            reward[env] = self._pay(slot, quality)
            infos[env]["episode"] = {"r": slot.total, "l": slot.steps}
            infos[env]["terminal_observation"] = slot.episode.observe(self.layout)
        for env, slot in enumerate(self.slots):
            if env not in ended:
                reward[env] = self._pay(slot, 0.0)
        done = np.isin(np.arange(len(self.slots)), over)
        return self._observe(self.slots), reward.astype(np.float32), done, infos

    def set_b(self, b: float) -> None:
        """The share of the graded part from the next verdict on. Raises: ValueError outside [0, 1]."""
        check_mode(self.setup.terms.quality, b)
        self.b = b

    # -- episodes ------------------------------------------------------------------------------------------------------

    def _group(self, env: int) -> int:
        return self.index * self.setup.groups // self.setup.shards + env // self.setup.k

    def _begin(self, env: int, number: int) -> Slot:
        input, shape, lam, budget = self._draw(self._group(env), number)
        return Slot(Episode.begin(self.masks, input, shape, lam, budget), number)

    def _draw(self, group: int, number: int) -> tuple[Input, PromptShape, float, float | None]:
        """Input, shape, lambda and budget of an episode: a pure function of seed, group and number."""
        key = (group, number)
        if key not in self._drawn:
            rng, terms = episode_rng(self.seed, group, number), self.setup.terms
            input = self.setup.source.draw(rng)
            check_answers(input.id, input.answers, terms.quality)
            shape = self.worker.shapes([input])[0]
            lam = terms.draw_lambda(rng)
            budget = terms.draw_budget(rng, self.masks.least(shape) / self.masks.full(shape))
            _remember(self._drawn, key, (input, shape, lam, budget))
        return self._drawn[key]

    def check(self, actions: Sequence[Any]) -> None:
        """Raises: ValueError where an action is not legal, see `step`."""
        for env, (slot, action) in enumerate(zip(self.slots, actions, strict=True)):
            try:
                slot.episode.choice(action)
            except ValueError as error:
                raise ValueError(f"environment {self.index * self.setup.per_shard + env}: {error}") from None

    def _look(self, running: Sequence[Slot], ended: Sequence[Slot] = ()) -> list[Verdict]:
        """Runs the host for all: up to the stops that are due, and to the end."""
        stops = [] if self.setup.terms.one_shot else [slot for slot in running if slot.episode.at]
        asks = [Ask(slot.episode.input, slot.episode.plan, slot.episode.stage) for slot in stops]
        asks += [Ask(slot.episode.input, slot.episode.plan) for slot in ended]
        references = {id(slot.episode.input): self._reference(slot.episode.input) for slot in self._own(ended)}
        found = self.worker.run(asks, references)
        for slot, seen in zip(stops, found, strict=False):
            self._show(slot, seen)
        return found[len(stops) :]

    @staticmethod
    def _show(slot: Slot, seen: Seen) -> None:
        episode = slot.episode
        if seen.features is not None:
            episode.groups[STOP_GROUP[episode.stage]] = seen.features
        slot.features += seen.bill.features
        episode.spent, episode.tokens_left = slot.flops(seen.bill), seen.tokens_left

    def _own(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        return slots if self.setup.terms.quality == "label_free" else ()

    def _reference(self, input: Input) -> Reference:
        """Run by itself, so that it does not depend on its batch mates."""
        if input.id not in self._references:
            _remember(self._references, input.id, self.worker.references([input])[0])
        return self._references[input.id]

    def _verdict(self, env: int, slot: Slot, verdict: Verdict) -> tuple[float, dict[str, Any]]:
        """Quality of a finished episode, and its info."""
        episode, terms = slot.episode, self.setup.terms
        sure = self._reference(episode.input).prob if terms.quality == "label_free" else None
        quality = quality_of(verdict.outcome, terms.quality, self.b, sure)
        episode.spent = slot.flops(verdict.bill)
        group = group_id(self._group(env), slot.number, self.setup.groups)
        about = {"group": group, "number": slot.number, "quality": quality, "TimeLimit.truncated": False}
        outcome = {"correct": verdict.outcome.correct, "prob": verdict.outcome.prob}
        return quality, episode.info() | about | outcome | {"tokens": verdict.tokens, "kv": verdict.kv}

    @staticmethod
    def _pay(slot: Slot, quality: float) -> float:
        """The step's reward."""
        reward = quality - slot.episode.lam * slot.episode.pay()
        slot.total, slot.steps = slot.total + reward, slot.steps + 1
        return reward

    def _observe(self, slots: Sequence[Slot]) -> Observation:
        each = [slot.episode.observe(self.layout) for slot in slots]
        return {name: np.stack([values[name] for values in each]) for name in ("vector", "mask")}

    # -- standing still ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Where every environment stands between two steps: plain data."""
        return {"seed": self.seed, "b": self.b, "slots": [_slot_state(slot) for slot in self.slots]}

    def restore(self, state: dict[str, Any]) -> Observation:
        """Goes on from a state, in this or another process; the observations that are due.

        Raises:
            ValueError: a state of another number of environments.
        """
        if len(state["slots"]) not in (0, self.setup.per_shard):
            raise ValueError(f"state of {len(state['slots'])} environments, this shard has {self.setup.per_shard}")
        if state["seed"] != self.seed:
            self._drawn.clear()
        self.seed, self.b = state["seed"], state["b"]
        self.slots = [self._restored(env, each) for env, each in enumerate(state["slots"])]
        return self._observe(self.slots) if self.slots else {}

    def _restored(self, env: int, state: dict[str, Any]) -> Slot:
        slot = self._begin(env, state["number"])
        episode = slot.episode
        episode.plan, episode.at = Plan.from_dict(state["plan"]), state["at"]
        episode.spent, episode.paid, episode.tokens_left = state["spent"], state["paid"], state["tokens_left"]
        episode.groups = {name: np.array(values, np.float32) for name, values in state["groups"].items()}
        for name in ("features", "total", "steps"):
            setattr(slot, name, state[name])
        return slot

    def reseed(self, seed: int) -> None:
        """Draws by another seed from the next `reset(first=True)` on."""
        self.seed = seed
        self._drawn.clear()


def _slot_state(slot: Slot) -> dict[str, Any]:
    episode = slot.episode
    return {
        "number": slot.number,
        "plan": episode.plan.to_dict(),
        "at": episode.at,
        "spent": episode.spent,
        "paid": episode.paid,
        "tokens_left": episode.tokens_left,
        "groups": {name: values.tolist() for name, values in episode.groups.items()},
        "features": slot.features,
        "total": slot.total,
        "steps": slot.steps,
    }


def _remember(memory: OrderedDict, key: Any, value: Any) -> None:
    """Adds an entry and forgets the oldest beyond the limit."""
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
