import dataclasses

import numpy as np
import pytest

from foveate.controller.observation import HEAD, Layout, Progress
from foveate.envs.episode import Terms
from foveate.plans import STAGES, Choice, Portfolio
from foveate.rollouts.table_env import TableVecEnv

pytestmark = pytest.mark.fast

NO_BUDGET = Terms(lam=(0.5, 0.5), budget_share=0.0)


def first_legal(mask, pick=0):
    """The pick-th legal action (m, r) of each environment, or its last one."""
    legal = [np.argwhere(each) for each in mask]
    return np.array([each[min(pick, len(each) - 1)] for each in legal])


def act_for(env, wanted):
    """The action that brings each environment to its wanted plan's column."""
    actions = []
    for i, column in enumerate(wanted):
        plan, stage = env.table.plans[column], STAGES[env._at[i]]
        actions.append(env.actions_of.encode(plan[stage], stage))
    return np.array(actions)


def play(env, steps, seed=0):
    """Random legal actions; all that came back."""
    rng, trail = np.random.default_rng(seed), []
    observation = env.reset()
    for _ in range(steps):
        actions = np.array([rng.permutation(np.argwhere(mask))[0] for mask in observation["mask"]])
        observation, reward, done, infos = env.step(actions)
        trail.append((observation, reward, done, infos))
    return trail


def test_each_plan_gives_its_quality_less_lambda_times_its_cost(toy):
    env = TableVecEnv(toy, terms=NO_BUDGET, groups=4, k=5)
    env.reset()
    wanted, rows = [0, 1, 2, 3, 4] * 4, env._row.copy()
    finished = {}
    while len(finished) < 20:
        due = [column if i not in finished else 0 for i, column in enumerate(wanted)]
        _, _, done, infos = env.step(act_for(env, due))
        finished |= {i: infos[i] for i in np.flatnonzero(done).tolist() if i not in finished}
    # block1 is not computed, since nothing is on offer at the encoder
    features = {0: 5000, 1: 0, 2: 0, 3: 2000, 4: 5000}
    for i, column in enumerate(wanted):
        info, row = finished[i], rows[i]
        cost = toy.share[row, column] + features[column] / toy.full[row]
        assert info["column"] == column and info["input"] == toy.ids[row]
        assert info["cost"] == pytest.approx(cost, abs=1e-12)
        assert info["episode"]["r"] == pytest.approx(float(toy.correct[row, column]) - 0.5 * cost, abs=1e-9)
        assert info["episode"]["l"] == {0: 3, 1: 1, 2: 1, 3: 2, 4: 3}[column]


def test_the_best_action_is_the_one_worked_out_by_hand(toy):
    # at lambda 0.5 the best plan is the cheapest right one: blind for inputs 0 and 4, else column 2 + i % 3
    env = TableVecEnv(toy, terms=NO_BUDGET, groups=8, k=1, seed=3)
    value = toy.quality() - 0.5 * toy.share
    best = value.argmax(axis=1)
    assert best.tolist() == [1, 3, 4, 2, 1, 4, 2, 3]
    env.reset()
    returns, rows = [], []
    for _ in range(60):
        row = env._row.copy()
        _, _, done, infos = env.step(act_for(env, best[env._row]))
        returns += [infos[i]["episode"]["r"] for i in np.flatnonzero(done)]
        rows += row[done].tolist()
    assert len(returns) > 100
    features = np.array([0, 0, 0, 2000, 5000])[best] / toy.full  # of the stops on the way
    expected = value[np.arange(8), best] - 0.5 * features
    assert np.allclose(returns, expected[rows])


def test_the_vector_is_what_the_layout_assembles(toy):
    terms = Terms(lam=(0.2, 0.2), budget=(0.9, 0.9), budget_share=1.0)
    env = TableVecEnv(toy, terms=terms, groups=2, k=1)
    layout = Layout.of({name: toy.group_names[name] for name in ("block1", "encoder", "layer1")})
    env.reset()
    row = env._row[0]
    observation, *_ = env.step(np.zeros((2, 2), int))  # nothing at the input; the encoder passes by
    groups = {name: toy.groups[name][row] for name in ("pixels", "question", "encoder")}
    spent = (toy.reach[row, 2] + 2000) / toy.full[row]
    expected = layout.assemble("outside", 0.2, Progress(spent, 1.0, 0.9), groups)
    assert np.allclose(observation["vector"][0], expected, atol=1e-6)
    assert observation["vector"].dtype == np.float32 and observation["mask"].dtype == np.int8
    assert env.observation_space.contains({name: values[0] for name, values in observation.items()})


def test_the_parts_of_the_reward_add_up_to_quality_less_cost(toy):
    terms = Terms(lam=(2.0, 2.0), budget_share=0.0, quality="graded", b=0.5)
    env = TableVecEnv(toy, terms=terms, groups=1, k=1)
    env.reset()
    row = env._row[0]
    rewards = [float(env.step(act_for(env, [4]))[1][0]) for _ in range(3)]
    at_outside, at_prefill = toy.reach[row, 2] + 2000, toy.reach[row, 4] + 5000
    quality = 0.5 * toy.correct[row, 4] + 0.5 * toy.prob[row, 4]
    end = toy.cost[row, 4] + 5000
    expected = [-2 * at_outside, -2 * (at_prefill - at_outside), -2 * (end - at_prefill)]
    assert np.allclose(rewards, np.array(expected) / toy.full[row] + [0, 0, quality], atol=1e-6)


def test_rollouts_of_a_group_share_input_lambda_and_budget(toy):
    env = TableVecEnv(toy, groups=3, k=4, seed=1)
    shared = {}
    for _, _, done, infos in play(env, 60):
        for i in np.flatnonzero(done).tolist():
            info = infos[i]
            assert info["group"] % 3 == i // 4 and info["group"] // 3 == info["number"]
            shared.setdefault(info["group"], set()).add((info["input"], info["lam"], info["budget"]))
    assert len(shared) > 20 and all(len(each) == 1 for each in shared.values())
    assert len(set.union(*shared.values())) == len(shared)


def test_no_budget_is_ever_exceeded_and_every_mask_has_a_legal_action(toy):
    env = TableVecEnv(toy, terms=Terms(budget=(0.05, 1.05), budget_share=1.0), groups=8, k=2)
    seen = set()
    for observation, _, done, infos in play(env, 200):
        assert observation["mask"].any(axis=(1, 2)).all()
        for i in np.flatnonzero(done):
            assert infos[i]["cost"] <= infos[i]["budget"] * (1 + 1e-9)
            seen.add(infos[i]["column"])
    assert seen == {0, 1, 2, 3, 4}


def test_an_episode_that_leaves_no_choice_has_one_action_at_the_input(toy):
    env = TableVecEnv(toy, terms=Terms(budget=(0.1, 0.1), budget_share=1.0), groups=2, k=1)
    observation = env.reset()
    blind = env.actions_of.encode(Choice("blind", 0.0), "input")
    assert np.argwhere(observation["mask"][0]).tolist() == [list(blind)]
    assert observation["vector"][0, 0] == 1.0
    _, _, done, infos = env.step(np.array([blind, blind]))
    assert done.all() and infos[0]["plan"] == "blind" and infos[0]["cost"] == pytest.approx(0.1)


def test_equal_seeds_give_equal_trajectories_and_seed_starts_over(toy):
    one, two = play(TableVecEnv(toy, seed=7), 30), play(TableVecEnv(toy, seed=7), 30)
    env = TableVecEnv(toy, seed=8)
    other = play(env, 30)
    env.seed(7)
    three = play(env, 30)
    for (a, ra, *_), (b, rb, *_), (c, rc, *_) in zip(one, two, three, strict=True):
        assert np.array_equal(a["vector"], b["vector"]) and np.array_equal(a["vector"], c["vector"])
        assert np.array_equal(ra, rb) and np.array_equal(ra, rc)
    assert not np.array_equal(one[0][0]["vector"], other[0][0]["vector"])


def test_a_run_goes_on_from_its_state_with_the_same_numbers(toy):
    import json

    env, rng = TableVecEnv(toy, seed=5), np.random.default_rng(0)
    play(env, 17)
    state = json.loads(json.dumps(env.state_dict()))
    fresh = TableVecEnv(toy, seed=0)
    observation = fresh.load_state_dict(state)
    for _ in range(20):
        actions = np.array([rng.permutation(np.argwhere(mask))[0] for mask in observation["mask"]])
        mine, theirs = env.step(actions), fresh.step(actions)
        assert np.array_equal(mine[0]["vector"], theirs[0]["vector"]) and np.array_equal(mine[1], theirs[1])
        assert [i.get("plan") for i in mine[3]] == [i.get("plan") for i in theirs[3]]
        observation = mine[0]


def test_the_terminal_observation_shows_the_last_stage_with_none_alone(toy):
    env = TableVecEnv(toy, terms=NO_BUDGET, groups=1, k=1)
    env.reset()
    last = env.step(act_for(env, [2]))[3][0]["terminal_observation"]
    assert last["vector"][HEAD.index("stage_decode")] == 1.0 and last["vector"][:6].sum() == 1.0
    assert np.argwhere(last["mask"]).tolist() == [[0, 0]]


def test_one_shot_shows_no_token_features_and_pays_for_none(toy):
    env = TableVecEnv(toy, terms=dataclasses.replace(NO_BUDGET, one_shot=True), groups=1, k=1)
    env.reset()
    row = env._row[0]
    for _ in range(3):
        observation, reward, done, infos = env.step(act_for(env, [4]))
        if not done[0]:
            assert reward[0] == 0
            for group in ("block1", "encoder", "layer1"):
                assert not observation["vector"][0, env.layout.slices[group]].any()
    assert infos[0]["cost"] == pytest.approx(toy.share[row, 4])


def test_illegal_actions_are_refused_by_stage_and_change_nothing(toy):
    env = TableVecEnv(toy, terms=NO_BUDGET, groups=1, k=1)
    before = env.reset()
    for action in ([[4, 1]], [[0, 1]], [[9, 0]], [[-1, 0]]):
        with pytest.raises(ValueError, match=r"input: action \(.*\) of environment 0 is not legal"):
            env.step(np.array(action))
    with pytest.raises(ValueError, match="need whole numbers"):
        env.step(np.array([[np.nan, 0.0]]))
    assert np.array_equal(env._observe(np.arange(1))["vector"], before["vector"]) and env._steps[0] == 0


def test_the_graded_share_can_be_lowered_later(toy):
    env = TableVecEnv(toy, terms=Terms(quality="graded", b=1.0), groups=1, k=1)
    env.env_method("set_b", 0.25)
    assert np.allclose(env._quality, 0.75 * toy.correct + 0.25 * toy.prob)
    with pytest.raises(ValueError, match="b = -1 is outside"):
        env.set_b(-1)


def test_tables_that_cannot_answer_are_refused(toy):
    two = Portfolio("two", {"outside": (Choice("visionzip", 0.25),)}, max_active_stages=2)
    with pytest.raises(ValueError, match="'two' may act at 2 stages"):
        TableVecEnv(toy, two)
    other = Portfolio("other", {"outside": (Choice("visionzip", 0.5),)}, max_active_stages=1)
    with pytest.raises(ValueError, match="none of the portfolio's plans"):
        TableVecEnv(toy, other)
    names = {**toy.group_names, "pixels": ("x",) * len(toy.group_names["pixels"])}
    with pytest.raises(ValueError, match="feature 0 of group 'pixels' is 'x'"):
        TableVecEnv(dataclasses.replace(toy, group_names=names))
    broken = {**toy.groups, "layer1": np.full((8, 1), np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        TableVecEnv(dataclasses.replace(toy, groups=broken))
