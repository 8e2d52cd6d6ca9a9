"""Training on replay tables, top to bottom: rivals, regression, warm start, PPO, calibration, export.

    splits = Splits(train, validation, calibration)          # tables of one portfolio, families disjoint
    trained = train(splits, TrainConfig(), out="runs/mine")   # runs/mine/controller.fov is what ships

Files in `out`: controller.fov (the better of the two below by validation), policy.fov (stage by stage: PPO),
one_shot.fov (regression at the start), checkpoint.pt, training.json, tb/ (TensorBoard). Logged by the training itself:

| key | unit | meaning |
|---|---|---|
| rollout/quality, rollout/cost_share | share | mean over episodes; quality as the reward counts it |
| rollout/stages_per_episode | decisions | how long it waits |
| rollout/alone_share | share | steps whose baseline is the critic alone |
| train/entropy, train/approx_kl | nats | of a decision; since the last update |
| train/clip_fraction | share | steps whose ratio is clipped |
| train/policy_loss, train/value_loss | | clipped surrogate; squared error of both critics |
| train/advantage_rms | quality | the running scale |
| train/explained_variance_quality, .._cost | share | of the critics |
| train/epochs, train/ent_coef, train/graded_share | | passes until the KL limit; weights that anneal |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from foveate.controller import Artefact
from foveate.envs.episode import Terms
from foveate.plans.plan import STAGES
from foveate.plans.portfolio import ActionTable
from foveate.policies.evaluate import Chooser, Outcome, calibrate, evaluate
from foveate.policies.export import artefact_of, export, library_versions, portfolio_of
from foveate.policies.forest import Forest, Neighbours
from foveate.policies.hull import lambda_range
from foveate.policies.learned import StagePolicy
from foveate.policies.ppo import GroupPPO, falling
from foveate.policies.regression import PlanRegression, Recipe
from foveate.policies.rivals import BestFixed, Fixed, RandomChoice, RegimeLine, fixed_hull
from foveate.policies.staged import Staged
from foveate.policies.standard import Standard
from foveate.policies.warm import WarmRecipe, clone
from foveate.rollouts.table import Table
from foveate.rollouts.table_env import TableVecEnv

READ = (*(f"stage_{stage}" for stage in STAGES), "log_lambda", "has_budget", "budget_left")
"""Of the observation's head, what the policy reads. The rest says no more than the stage where one stage acts."""


@dataclass(frozen=True)
class Splits:
    """Replay tables of one portfolio with disjoint scene families.

    Attributes:
        train: what everything is fitted on.
        validation: early stopping and the choice between snapshots.
        calibration: lambda -> mean cost share, for the budget dial.

    Raises:
        ValueError: an empty table, different plans, or a family in two of them.
    """

    train: Table
    validation: Table
    calibration: Table

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("train", "validation", "calibration")}
        seen: dict[str, str] = {}
        for name, table in parts.items():
            if not table.n:
                raise ValueError(f"splits: {name} holds no input")
            if table.plans != self.train.plans:
                raise ValueError(f"splits: {name} holds other plans than train")
            for family in set(table.families.tolist()):
                if family in seen:
                    raise ValueError(f"splits: scene family {family!r} is in {seen[family]} and in {name}")
                seen[family] = name

    @classmethod
    def of(cls, table: Table, seed: int = 0) -> Splits:
        """One table cut by family: 70 % train, 15 % validation, 15 % calibration."""
        fold = table.folds(20, seed)
        return cls(table.subset(fold < 14), table.subset((fold >= 14) & (fold < 17)), table.subset(fold >= 17))


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    Args:
        seed: of everything.
        updates: of PPO; 0 = the warm start alone.
        groups: inputs side by side. k: rollouts of each. n_steps: steps of each rollout per update.
        widths: hidden units of actor and critic.
        learning_rate: of PPO, falling to a tenth. ent_coef: of the entropy bonus, falling to 0.
        n_epochs: passes over the steps of an update. batch_size: steps per gradient step.
        target_kl: in nats per update. critic_weight: of the critic in the baseline, in rollouts.
        anchor_coef: weight of the KL divergence from the warm start; 0 = free to leave it.
        lam: range of lambda; None = by the slopes of the training hull. lambdas: points of it that are evaluated.
        budget: range of hard budgets, shares. budget_share: share of episodes that have one.
        b: graded share of the reward's quality at the start; it falls to 0 in the first half.
        evaluate_every: updates between evaluations on the validation table, and between checkpoints.
        default_budget: mean cost share that the exported controller is set to.
        regression, warm: recipes of the parts.

    Raises:
        ValueError: a number below its least, or a range that `Terms` refuses; told here, before any table is filled.
    """

    seed: int = 0
    updates: int = 80
    groups: int = 64
    k: int = 4
    n_steps: int = 24
    widths: tuple[int, ...] = (64, 64)
    learning_rate: float = 2e-4
    ent_coef: float = 0.002
    n_epochs: int = 3
    batch_size: int = 1024
    target_kl: float = 0.02
    critic_weight: float = 1.0
    anchor_coef: float = 0.0
    lam: tuple[float, float] | None = None
    lambdas: int = 17
    budget: tuple[float, float] = (0.1, 1.0)
    budget_share: float = 0.2
    b: float = 0.5
    evaluate_every: int = 10
    default_budget: float = 0.35
    regression: Recipe = field(default_factory=Recipe)
    warm: WarmRecipe = field(default_factory=WarmRecipe)

    def __post_init__(self) -> None:
        least = {"updates": 0, "n_steps": len(STAGES), "lambdas": 2}  # a rollout must hold the longest episode
        for name in ("updates", "groups", "k", "n_steps", "n_epochs", "batch_size", "lambdas", "evaluate_every"):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(f"{name}: {getattr(self, name)} is below {least.get(name, 1)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: {self.widths} must hold numbers of at least 1")
        terms_of(self, self.lam or Terms.lam)


@dataclass(frozen=True)
class Progress:
    """What a watcher gets to see.

    Attributes:
        update: number of PPO updates so far; its total is `updates`.
        outcomes: of the policy as it is, on the validation table, one per lambda.
        table: the validation table.
        score: mean over lambdas of (accuracy - lambda * cost) / (1 + lambda), what snapshots are chosen by.
    """

    update: int
    updates: int
    outcomes: Sequence[Outcome]
    table: Table
    score: float


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        policy: the stage-by-stage policy as exported.
        one_shot: the regression's decision at the start, as exported.
        rivals: everything else that was fitted on the same inputs, by name.
        artefacts: "policy" and "one_shot".
        winner: which of them has the better validation score, and ships as controller.fov.
        scores: validation score by name, rivals included.
        lams: the lambdas of all evaluations.
        history: (update, score) of PPO.
    """

    policy: StagePolicy
    one_shot: Staged
    rivals: Mapping[str, Chooser]
    artefacts: Mapping[str, Artefact]
    winner: str
    scores: Mapping[str, float]
    lams: np.ndarray
    history: Sequence[tuple[int, float]]


def train(
    splits: Splits,
    config: TrainConfig | None = None,
    out: str | Path = "runs/train",
    watch: Sequence[Watch] = (),
    resume: bool = False,
) -> Trained:
    """Trains, calibrates and exports; see the head of this file.

    Args:
        splits: tables.
        config: how.
        out: folder for everything that is written.
        watch: called at every evaluation.
        resume: go on from `out`/checkpoint.pt where there is one.

    Raises:
        ValueError: a table that does not fit, or a checkpoint of another policy.
    """
    config, out = config or TrainConfig(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lam = config.lam or lambda_range(fixed_hull(splits.train))
    lams = np.geomspace(*lam, config.lambdas)
    regression = PlanRegression(splits.train, splits.validation, config.regression, seed=config.seed)
    rivals = fit_rivals(splits.train, regression, config.seed)

    model = build(splits.train, config, lam)
    model.set_logger(configure(str(out / "tb"), ["tensorboard"]))
    actions = model.get_env().actions_of
    keeper = _Keeper(model, actions, splits.validation, lams, config, out, watch)
    if resume and (out / "checkpoint.pt").exists():
        keeper.take(model.restore(out / "checkpoint.pt"))
    else:
        clone(model.policy, regression, splits.train, actions, terms_of(config, lam), config.warm, config.seed)
    rivals["cloned cascade"] = keeper.cloned()
    model.set_anchor(keeper.start)
    left = config.updates - model.update
    if left > 0:
        model.learn(left * model.n_steps * model.n_envs, keeper, reset_num_timesteps=False)
        model.logger.dump(model.num_timesteps)  # SB3 leaves the last update's numbers unwritten
    keeper.evaluate()
    model.policy.load_state_dict(keeper.best)

    policy = _stage_policy(model, actions, "policy")
    one_shot = rivals.pop("one-shot regression")
    scores = {c.name: score(evaluate(c, splits.validation, lams)) for c in (policy, one_shot, *rivals.values())}
    winner = "policy" if scores["policy"] >= scores[one_shot.name] else "one_shot"
    about = {"seed": config.seed, "config": _plain(asdict(config)), "scores": scores}
    artefacts = {}
    for name, chooser, network, standard in (
        ("policy", policy, policy.network, model.policy.standard),
        ("one_shot", one_shot, regression.network, regression.standard),
    ):
        calibration = calibrate(evaluate(chooser, splits.calibration, lams))
        artefacts[name] = artefact_of(network, standard, splits.train, calibration, config.default_budget, about)
        export(out / f"{name}.fov", artefacts[name])
    export(out / "controller.fov", artefacts[winner])
    _write(out / "training.json", about | {"winner": winner, "history": keeper.history, "lambda": list(lams)})
    return Trained(policy, one_shot, rivals, artefacts, winner, scores, lams, tuple(keeper.history))


def build(table: Table, config: TrainConfig, lam: tuple[float, float]) -> GroupPPO:
    """PPO on a replay table, nothing learnt yet."""
    env = TableVecEnv(table, portfolio_of(table), terms_of(config, lam), config.groups, config.k, config.seed)
    return GroupPPO(
        env,
        policy_kwargs={"widths": config.widths, "standard": Standard.fit(table, head=READ)},
        learning_rate=falling(config.learning_rate, config.learning_rate / 10),
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        ent_coef=config.ent_coef,
        target_kl=config.target_kl,
        critic_weight=config.critic_weight,
        anchor_coef=config.anchor_coef,
        seed=config.seed,
    )


def terms_of(config: TrainConfig, lam: tuple[float, float]) -> Terms:
    """How episodes are drawn and paid for."""
    return Terms(lam, config.budget, config.budget_share, "graded", config.b)


def fit_rivals(train_table: Table, regression: PlanRegression, seed: int = 0) -> dict[str, Chooser]:
    """Everything that the policy is compared with, fitted on the same inputs; by name."""
    forest = Forest(train_table, seed=seed)
    router = Forest(train_table, groups=("question",), leaf=20, seed=seed, name="question-only router")
    choosers: list[Chooser] = [
        Fixed(0, "uncompressed"),
        BestFixed(train_table),
        RegimeLine(train_table),
        RandomChoice(seed),
        Staged(router, ("input",), reads=("question",)),
        Staged(Neighbours(train_table), ("input",)),
        Staged(forest, name="forest cascade"),
        Staged(regression, ("input",), name="one-shot regression"),
        Staged(regression, name="regression cascade"),
    ]
    return {chooser.name: chooser for chooser in choosers}


def score(outcomes: Sequence[Outcome]) -> float:
    """Mean over lambdas of reward / (1 + lambda): one number for a whole front."""
    return float(np.mean([outcome.reward / (1 + outcome.lam) for outcome in outcomes]))


class _Keeper(BaseCallback):
    """Between updates: anneals, evaluates on the validation table, keeps the best snapshot, writes checkpoints."""

    def __init__(
        self,
        model: GroupPPO,
        actions: ActionTable,
        table: Table,
        lams: np.ndarray,
        config: TrainConfig,
        out: Path,
        watch: Sequence[Watch],
    ) -> None:
        super().__init__()
        self._ppo, self._actions, self._table, self._lams = model, actions, table, lams
        self._config, self._out, self._watch = config, out, watch
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, Any] = {}
        self.start: dict[str, Any] = {}

    def take(self, extra: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.best, self.start = dict(extra["best"]), dict(extra["start"])
        self.history = [(int(update), float(value)) for update, value in extra["history"]]

    def cloned(self) -> StagePolicy:
        """The policy as PPO found it."""
        self.start = self.start or _weights(self._ppo)
        now = _weights(self._ppo)
        self._ppo.policy.load_state_dict(self.start)
        cloned = _stage_policy(self._ppo, self._actions, "cloned cascade")
        self._ppo.policy.load_state_dict(now)
        return cloned

    def evaluate(self) -> None:
        """One evaluation; the first at a given update counts."""
        update = self._ppo.update
        if self.history and self.history[-1][0] >= update:
            return
        outcomes = evaluate(_stage_policy(self._ppo, self._actions, "policy"), self._table, self._lams)
        value = score(outcomes)
        if not self.history or value > max(past for _, past in self.history):
            self.best = _weights(self._ppo)
        self.history.append((update, value))
        extra = {"best": self.best, "start": self.start, "history": [list(pair) for pair in self.history]}
        self._ppo.checkpoint(self._out / "checkpoint.pt", extra)
        for watch in self._watch:
            watch(Progress(update, self._config.updates, outcomes, self._table, value))

    def _on_rollout_start(self) -> None:
        update, config = self._ppo.update, self._config
        if update % config.evaluate_every == 0:
            self.evaluate()
        b = config.b * max(0.0, 1.0 - 2.0 * update / config.updates)
        self.training_env.env_method("set_b", b)
        self.logger.record("train/graded_share", b)

    def _on_step(self) -> bool:
        return True


def _weights(model: GroupPPO) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def _stage_policy(model: GroupPPO, actions: ActionTable, name: str) -> StagePolicy:
    standard = model.policy.standard
    return StagePolicy(model.policy.export(), standard.normalisation, standard.layout, actions, name)


def _plain(value: Any) -> Any:
    """Tuples as lists, for JSON."""
    return json.loads(json.dumps(value))


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**data, "libraries": library_versions()}, indent=1) + "\n", "utf-8")
