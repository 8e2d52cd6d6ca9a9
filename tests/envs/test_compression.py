import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from foveate.controller.observation import HEAD
from foveate.envs import ENV_ID
from foveate.envs.compression import CompressionEnv
from foveate.envs.inputs import Input
from foveate.envs.live import reference_of
from foveate.models.ledger import Ledger
from foveate.plans import BLIND, UNCOMPRESSED, Choice, Plan, Portfolio

FREE = {"lam": 0.5, "budget": None}


@pytest.fixture
def make(host, inputs, portfolio):
    def build(**settings):
        return CompressionEnv(host, portfolio, inputs, **settings)

    return build


def actions_of(env, plan):
    """Yields the action for the stage that is due, until the plan is done."""
    while not env.episode.done:
        stage = env.episode.stage
        yield np.array(env.table.encode(plan[stage], stage))


def follow(env, plan, **options):
    """Rewards and the last info of one episode by a plan."""
    env.reset(options={**FREE, "index": 0, **options})
    rewards, info = [], {}
    for action in actions_of(env, plan):
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        assert not truncated
    assert terminated
    return rewards, info


class Masked(gymnasium.ActionWrapper):
    """For checkers, which draw any action of the space: the legal one that comes next."""

    def action(self, action):
        legal = np.argwhere(self.env.unwrapped.episode.mask())
        width = self.env.unwrapped.table.shape[1]
        return legal[(int(action[0]) * width + int(action[1])) % len(legal)]


class TestCheckers:
    def test_gymnasium_finds_nothing_to_object_to(self, make):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            gymnasium_check(Masked(make(render_mode="ansi")), skip_render_check=True)
        texts = [str(w.message) for w in said]
        allowed = ("infinity", "is different from the unwrapped version")  # host features have no stated bounds
        assert [t for t in texts if not any(word in t for word in allowed)] == []

    def test_stable_baselines3_finds_nothing_to_object_to(self, make):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sb3_check(Masked(make()))

    def test_the_id_is_registered_by_importing_the_package_alone(self, host, inputs, portfolio):
        env = gymnasium.make(ENV_ID, host=host, portfolio=portfolio, inputs=inputs)
        observation, _ = env.reset(seed=3, options={"index": 1})
        assert isinstance(env.unwrapped, CompressionEnv) and env.observation_space.contains(observation)


class TestEpisode:
    @pytest.mark.parametrize(
        "plan",
        [
            UNCOMPRESSED,
            BLIND,
            Plan.of(input=("downsample", 0.25)),
            Plan.of(encoder=("tome", 0.5), prefill=("fastv", 0.5)),
            Plan.of(outside=("visionzip", 0.25), decode=("look_m", 0.5)),
            Plan.of(projector=("average_pool", 0.25)),
        ],
        ids=Plan.label,
    )
    def test_the_return_is_quality_less_lambda_times_cost(self, make, host, inputs, plan):
        env = make()
        rewards, info = follow(env, plan, lam=2.0)
        alone = host.open([inputs[0].image], [inputs[0].question]).run(plan)
        shape = alone.shapes[0]
        full, spent = (host.forecast(p, shape, 4).total for p in (UNCOMPRESSED, plan))
        features = env._pass.ledger[0].by_stage().get("features", 0)
        assert info["plan"] == plan.label()
        assert info["correct"] == alone.score([inputs[0].answers])[0].greedy[0]
        assert info["cost"] == pytest.approx((spent + features) / full, rel=1e-12)
        assert sum(rewards) == pytest.approx(info["quality"] - 2.0 * info["cost"], rel=1e-9)
        assert (features > 0) == any(s in ("encoder", "outside", "prefill") for s in env.masks.asked(plan))
        # what masks count is never exceeded: features of fewer tokens may cost less than they say
        assert spent + features <= env.masks.price(plan, shape) <= (spent + features) + 0.02 * full
        assert plan != UNCOMPRESSED or spent + features == env.masks.price(plan, shape)

    def test_the_uncompressed_answer_is_right_since_it_is_the_accepted_one(self, make):
        assert follow(make(), UNCOMPRESSED)[1]["quality"] == 1.0

    def test_stages_run_one_by_one_and_show_what_they_reveal(self, make):
        env = make()
        observation, _ = env.reset(options={**FREE, "index": 2})
        seen = lambda group: observation["vector"][env.layout.slices[group].start]  # noqa: E731
        spent = lambda: observation["vector"][HEAD.index("spent")]  # noqa: E731
        assert (seen("pixels"), seen("question"), seen("block1")) == (1, 1, 0) and spent() == 0
        trail = []
        for action in actions_of(env, UNCOMPRESSED):
            observation, reward, *_ = env.step(action)
            trail.append((float(seen("block1")), float(seen("encoder")), float(seen("layer1")), float(spent()), reward))
        assert [t[:3] for t in trail] == [(1, 0, 0), (1, 1, 0), (1, 1, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
        costs = [t[3] for t in trail]
        assert costs == sorted(costs) and costs[0] > 0
        assert [t[4] for t in trail[:5]] == pytest.approx(-0.5 * np.diff([0, *costs])[:5], abs=1e-6)

    def test_tokens_left_follow_the_plan(self, make):
        env = make()
        env.reset(options={**FREE, "index": 0})
        left = []
        for action in actions_of(env, Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))):
            left.append(float(env.step(action)[0]["vector"][HEAD.index("tokens_left")]))
        assert left[:4] == [1.0, 1.0, 0.25, 0.25]

    def test_a_blind_choice_ends_the_episode_at_once(self, make):
        rewards, info = follow(make(), BLIND)
        assert len(rewards) == 1 and info["tokens"] == 0 and info["cost"] < 0.5

    def test_one_shot_reveals_and_spends_nothing_before_the_end(self, make, host):
        env = make(one_shot=True)
        plan = Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))
        env.reset(options={**FREE, "index": 0})
        trail = [env.step(action) for action in actions_of(env, plan)]
        for observation, reward, done, *_ in trail[:-1]:
            assert reward == 0 and not done
            assert not observation["vector"][env.layout.slices["block1"].start :].any()
        full = host.forecast(UNCOMPRESSED, env.episode.shape, 4).total
        assert trail[-1][4]["cost"] == host.forecast(plan, env.episode.shape, 4).total / full

    def test_an_episode_may_show_several_pictures(self, make, host, inputs):
        both = replace(inputs[1], image=(inputs[0].image, inputs[1].image))
        env, plan = make(), Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5))
        rewards, info = follow(env, plan, input=both)
        p = host.open([both.image], [both.question]).run(plan)
        assert info["prob"] == pytest.approx(np.exp(p.score([both.answers])[0].logprob[0]), rel=1e-4)
        assert p.counts["outside"] == [8] and env.episode.shape.n_tokens == 32
        assert sum(rewards) == pytest.approx(info["quality"] - 0.5 * info["cost"])

    def test_equal_seeds_give_equal_episodes(self, make):
        one, two = make(), make()
        for _ in range(2):
            a, info_a = one.reset(seed=11)
            b, info_b = two.reset(seed=11)
            assert info_a == info_b and np.array_equal(a["vector"], b["vector"])
        assert make().reset(seed=12)[1] != info_a

    def test_info_holds_no_time_and_no_arrays(self, make):
        _, info = follow(make(), UNCOMPRESSED)
        assert set(info) == {
            *("input", "regime", "family", "lam", "budget", "plan", "stage", "cost"),
            *("quality", "correct", "prob", "tokens", "kv"),
        }
        assert all(isinstance(value, str | float | int | bool | None) for value in info.values())


class TestBudget:
    @pytest.mark.parametrize("budget", [0.4, 0.5, 0.7, 0.9])
    def test_no_sequence_of_legal_actions_exceeds_it(self, make, budget):
        env, rng = make(), np.random.default_rng(0)
        for _ in range(6):
            env.reset(seed=int(rng.integers(1000)), options={"budget": budget})
            done = False
            while not done:
                legal = np.argwhere(env.episode.mask())
                _, _, done, _, info = env.step(legal[rng.integers(len(legal))])
            assert info["cost"] <= budget

    def test_a_mask_allows_exactly_what_some_completion_can_pay(self, make):
        env = make()
        env.reset(options={"lam": 1.0, "budget": 0.6, "index": 0})
        shape, limit = env.episode.shape, 0.6 * env.episode.full
        for m, r, choice in env.table.offers("input"):
            plans = [p for p in _all_legal(env) if p["input"] == choice]
            assert env.episode.mask()[m, r] == any(env.masks.price(p, shape) <= limit for p in plans)

    def test_a_budget_below_the_cheapest_plan_is_refused_by_name(self, make):
        with pytest.raises(ValueError, match="below the cheapest plan, blind at"):
            make().reset(options={"budget": 0.001})

    def test_where_nothing_is_left_to_decide_the_one_action_is_asked_for(self, make):
        env = make()
        env.reset(options={**FREE, "index": 0})
        least = env.masks.least(env.episode.shape) / env.episode.full
        observation, info = env.reset(options={"lam": 1.0, "budget": least, "index": 0})
        assert info["stage"] == "input" and observation["mask"].sum() == 1
        _, _, done, _, info = env.step(np.argwhere(observation["mask"])[0])
        assert done and info["plan"] == "blind" and info["cost"] == pytest.approx(least)


def _all_legal(env):
    from foveate.plans import all_plans, plan_refusal

    portfolio_plans = all_plans(env.portfolio)
    return [p for p in portfolio_plans if plan_refusal(p, env.masks.rules(), env.table.max_active_stages) is None]


class TestQuality:
    def test_graded_quality_mixes_in_the_probability_and_b_can_be_lowered(self, make):
        env = make(quality="graded", b=1.0)
        info = follow(env, BLIND)[1]
        assert info["quality"] == pytest.approx(info["prob"]) and 0 < info["prob"] < 1
        env.set_b(0.25)
        info = follow(env, BLIND)[1]
        assert info["quality"] == pytest.approx(0.75 * info["correct"] + 0.25 * info["prob"])

    def test_label_free_quality_is_capped_by_the_uncompressed_model_s_own_doubt(self, make, host, inputs):
        unknown = Input("x#0", inputs[0].image, inputs[0].question, (), "r", "f", "t", "test")
        reference = reference_of(host, unknown)
        info = follow(make(quality="label_free"), UNCOMPRESSED, input=unknown)[1]
        assert info["quality"] == pytest.approx(reference.prob, rel=1e-5) and info["correct"] is False
        for plan in (BLIND, Plan.of(outside=("visionzip", 0.25))):
            quality = follow(make(quality="label_free"), plan, input=unknown)[1]["quality"]
            score = host.open([unknown.image], [unknown.question]).run(plan).score([[reference.answer]])[0]
            assert quality == pytest.approx(min(np.exp(score.logprob[0]), reference.prob), rel=1e-5)

    def test_an_input_without_answers_needs_label_free_quality(self, make, inputs):
        unknown = Input("x#0", inputs[0].image, inputs[0].question, (), "r", "f", "t", "test")
        with pytest.raises(ValueError, match="x#0: has no accepted answer; quality mode 'exact'"):
            make().reset(options={"input": unknown})


class TestRefusals:
    @pytest.mark.parametrize(
        "action, message",
        [
            ([0, 1], r"input: action \(0, 1\) is not on offer"),
            ([99, 0], r"input: action \(99, 0\) is not on offer"),
            ([0.5, 0], "input: action .* is not a pair of whole numbers"),
            ([np.nan, 0], "input: action .* is not a pair of whole numbers"),
            (3, "input: action 3 is not a pair of whole numbers"),
            ([0, 0, 0], "input: action .* is not a pair of whole numbers"),
        ],
    )
    def test_an_action_that_means_nothing_names_stage_and_action(self, make, action, message):
        env = make()
        before, _ = env.reset(options={**FREE, "index": 0})
        with pytest.raises(ValueError, match=message):
            env.step(action)
        assert np.array_equal(env.episode.observe(env.layout)["vector"], before["vector"])

    def test_an_illegal_method_names_its_reason_and_leaves_the_episode_as_it_was(self, make):
        env = make()
        env.reset(options={**FREE, "index": 0})
        env.step(np.array([0, 0]))
        env.step(env.table.encode(Choice("tome", 0.5), "encoder"))
        env.step(np.array([0, 0]))
        assert env.episode.stage == "prefill"  # the broken grid left one action at the projector
        env.reset(options={**FREE, "budget": 0.4, "index": 0})
        with pytest.raises(ValueError, match=r"input: action \(0, 0\), none@1.0, is not legal: every way to go on"):
            env.step(np.array([0, 0]))
        assert env.episode.at == 0

    def test_options_and_terms_out_of_range_are_refused(self, make):
        env = make()
        for options, message in [
            ({"lamda": 1}, "unknown option 'lamda'"),
            ({"lam": -1.0}, "lam: -1.0 is outside"),
            ({"lam": float("nan")}, "lam: nan is outside"),
            ({"budget": -0.5}, "budget: -0.5 is not"),
            ({"index": 99}, "index 99 is outside 0..7"),
        ]:
            with pytest.raises(ValueError, match=message):
                env.reset(options=options)
        for settings, message in [
            ({"lam": (2.0, 1.0)}, "lam: "),
            ({"budget_share": 2.0}, "budget_share"),
            ({"quality": "good"}, "unknown mode 'good'"),
            ({"b": 2.0}, "b = 2.0"),
        ]:
            with pytest.raises(ValueError, match=message):
                make(**settings)

    def test_a_step_needs_an_episode_under_way(self, make):
        with pytest.raises(ValueError, match="reset comes first"):
            make().step(np.array([0, 0]))
        env = make()
        follow(env, BLIND)
        with pytest.raises(ValueError, match="the episode is over"):
            env.step(np.array([0, 0]))

    def test_a_portfolio_of_which_nothing_can_run_says_why(self, host, inputs):
        nothing = Portfolio("nothing", {"outside": (Choice("no_such_method", 0.5),)})
        with pytest.raises(ValueError, match="offers nothing .* outside:no_such_method: no method 'no_such_method'"):
            CompressionEnv(host, nothing, inputs)

    def test_a_feature_that_is_not_finite_is_named_and_never_shown(self, make, monkeypatch):
        from foveate.envs import compression

        env = make()
        env.reset(options={**FREE, "index": 0})
        broken = np.full(len(env.layout.features[2]), np.nan, np.float32)
        monkeypatch.setattr(compression, "look", lambda p, stop: [broken])
        with pytest.raises(ValueError, match="observation entry 'block1.neighbour_cosine' is not a finite number"):
            env.step(np.array([0, 0]))


def test_rendering_says_where_the_episode_stands(make, inputs):
    env = make(render_mode="ansi")
    assert env.render() is None
    env.reset(options={**FREE, "index": 0})
    env.step(np.array([0, 0]))
    assert env.render().startswith(f"{inputs[0].id} at encoder: none, cost 0.")


def test_the_answer_s_tokens_are_on_the_bill(make, host):
    short, long = (follow(make(answer_tokens=n), UNCOMPRESSED)[1]["cost"] for n in (1, 9))
    env = make(answer_tokens=9)
    env.reset(options={**FREE, "index": 0})
    ledger = host.forecast(UNCOMPRESSED, env.episode.shape, 9)
    assert isinstance(ledger, Ledger) and ledger.by_stage()["answer"] > 0
    assert short == pytest.approx(env.masks.price(UNCOMPRESSED, env.episode.shape) / ledger.total, rel=0.05)
    assert long >= 1 and short >= 1
