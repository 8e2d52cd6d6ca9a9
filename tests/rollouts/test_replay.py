import dataclasses

import numpy as np
import pytest

from foveate.envs.episode import Terms
from foveate.envs.inputs import ListSource
from foveate.plans import BLIND, UNCOMPRESSED, Plan
from foveate.rollouts import replay
from foveate.rollouts.replay import fill, legal_plans
from foveate.rollouts.shard import Setup
from foveate.rollouts.table import Table
from foveate.rollouts.table_env import TableVecEnv
from foveate.rollouts.vec import BatchVecEnv


@pytest.fixture(scope="module")
def single(portfolio):
    return dataclasses.replace(portfolio, max_active_stages=1)


@pytest.fixture(scope="module")
def table(host, inputs, single, tmp_path_factory):
    return fill(
        host, inputs, single, tmp_path_factory.mktemp("t") / "t.parquet", label_free=True, shard=3, progress=False
    )


def test_every_cell_is_what_the_plan_gives_alone(host, inputs, table):
    assert table.plans[:2] == (UNCOMPRESSED, BLIND) and table.p == 9 and table.n == 8
    for i, each in enumerate(inputs):
        said = host.open([each.image], [each.question]).decode()[0]
        sure = None
        for j, plan in enumerate(table.plans):
            p = host.open([each.image], [each.question]).run(plan)
            score = p.score([[*each.answers, said]])[0]
            prob, own = np.exp(score.logprob)
            sure = own if sure is None else sure
            assert table.correct[i, j] == score.greedy[0]
            assert table.prob[i, j] == pytest.approx(prob, rel=1e-4)
            assert table.label_free[i, j] == pytest.approx(min(own, sure), rel=1e-4)
            assert table.cost[i, j] == host.forecast(plan, p.shapes[0], 4).total
            assert table.tokens[i, j] == pytest.approx(np.mean(p.counts["layers"][0]))
            assert table.kv[i, j] == p.ledger[0].kv_bytes_end
    assert table.correct[:, 0].all() and table.ids[0] == inputs[0].id
    assert table.meta["fingerprint"] == host.fingerprint and table.meta["answer_tokens"] == 4
    assert (table.reach[:, 0] == 0).all() and (np.diff(table.reach, axis=1) >= 0).all()


def test_an_interrupted_run_goes_on_and_ends_the_same_bit_for_bit(host, inputs, single, table, tmp_path, monkeypatch):
    ran = []
    run = replay._Job.run

    def watched(self, host, inputs):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append([each.id for each in inputs])
        return run(self, host, inputs)

    monkeypatch.setattr(replay._Job, "run", watched)
    call = lambda: fill(host, inputs, single, tmp_path / "t.parquet", label_free=True, shard=3, progress=False)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        call()
    assert sorted(path.name for path in (tmp_path / "t.parquet.parts").iterdir()) == ["00000.parquet", "00001.parquet"]
    monkeypatch.setattr(
        replay._Job, "run", lambda self, host, inputs: ran.append(len(inputs)) or run(self, host, inputs)
    )
    whole = call()
    assert ran[2:] == [2] and whole.same_as(table)
    assert not (tmp_path / "t.parquet.parts").exists()
    assert call().same_as(table) and ran[2:] == [2]  # the file is there: nothing runs


def test_a_file_of_other_inputs_is_not_mistaken_for_ours(host, inputs, single, tmp_path):
    out = tmp_path / "t.parquet"
    fill(host, inputs[:2], [UNCOMPRESSED, BLIND], out, progress=False)
    with pytest.raises(ValueError, match="t.parquet: holds a table of other inputs, plans or another host"):
        fill(host, inputs[:3], [UNCOMPRESSED, BLIND], out, progress=False)


def test_arguments_that_cannot_be_filled_are_refused(host, inputs, tmp_path):
    out = tmp_path / "t.parquet"
    unknown = dataclasses.replace(inputs[0], answers=())
    for samples, plans, message in [
        ([], [UNCOMPRESSED], "samples is empty"),
        ([unknown], [UNCOMPRESSED], "has no accepted answer"),
        (inputs[:1], [BLIND], "must start with the uncompressed"),
        (
            inputs[:1],
            [UNCOMPRESSED, Plan.of(outside=("nothing", 0.5))],
            "plan outside:nothing@0.5: no method 'nothing'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            fill(host, samples, plans, out, progress=False)
    assert not out.exists()


def test_label_free_tables_need_no_answers(host, inputs, tmp_path):
    unknown = dataclasses.replace(inputs[0], answers=())
    table = fill(host, [unknown], [UNCOMPRESSED, BLIND], tmp_path / "t", label_free=True, progress=False)
    assert not table.correct.any() and 0 < table.label_free[0, 1] <= table.label_free[0, 0] + 1e-6


def test_legal_plans_hold_the_blind_one_and_none_that_the_host_cannot_run(host, portfolio):
    plans = legal_plans(host, portfolio)
    assert plans[0] == UNCOMPRESSED and BLIND in plans and len(plans) == 26
    broken = Plan.of(encoder=("tome", 0.5), projector=("average_pool", 0.25))
    assert broken not in plans


def test_the_bar_goes_to_stderr(host, inputs, tmp_path, capsys):
    fill(host, inputs[:1], [UNCOMPRESSED], tmp_path / "t")
    said = capsys.readouterr()
    assert said.out == "" and "1/1" in said.err


def test_the_table_environment_plays_the_live_episodes(host, inputs, single, table):
    """Same seeds, same draws: costs, features and qualities of the table stand for the model's own."""
    terms = Terms(lam=(0.05, 1.0), budget=(0.4, 1.0))
    setup = Setup(single, ListSource(inputs), terms, groups=4, k=2, seed=3)
    live, replayed = BatchVecEnv(setup, host), TableVecEnv(table, single, terms, groups=4, k=2, seed=3)
    a, b, rng, ended = live.reset(), replayed.reset(), np.random.default_rng(0), 0
    for _ in range(12):
        assert np.array_equal(a["mask"], b["mask"])
        apart = np.abs(a["vector"] - b["vector"]).max(axis=0)
        far = {name: float(x) for name, x in zip(replayed.layout.names, apart, strict=True) if x > 2e-5}
        assert set(far) <= {"spent", "budget_left"} and max(far.values(), default=0) < 0.02  # mean costs of features
        actions = np.array([rng.permutation(np.argwhere(mask))[0] for mask in a["mask"]])
        a, reward, done, infos = live.step(actions)
        b, other, over, told = replayed.step(actions)
        assert np.array_equal(done, over) and np.allclose(reward, other, atol=0.02)
        for mine, theirs in zip(infos, told, strict=True):
            for key in ("input", "plan", "lam", "group", "correct", "quality") if mine else ():
                assert mine[key] == theirs[key]
            ended += bool(mine)
    assert ended > 20


def test_a_table_of_samples_has_an_input_for_each_turn(host, tmp_path):
    from foveate.tasks.registry import regime_sample

    sample = regime_sample("single", "test", 0)
    table = fill(host, [sample], [UNCOMPRESSED, BLIND], tmp_path / "t.parquet", progress=False)
    assert table.ids.tolist() == [f"{sample.id}#{i}" for i in range(len(sample.turns))]
    assert Table.load(tmp_path / "t.parquet").same_as(table)


def several(inputs):
    """An input of one picture, one of two, one of the same two in the other order."""
    one, two = inputs[0], inputs[1]
    both = dataclasses.replace(two, id="both#0", image=(one.image, two.image))
    return [one, both, dataclasses.replace(both, id="turned#0", image=both.image[::-1])]


def test_inputs_of_several_pictures_are_filled_as_the_host_answers_them(host, inputs, single, tmp_path):
    asked = several(inputs)
    table = fill(host, asked, single, tmp_path / "t.parquet", label_free=True, progress=False)
    assert table.plans == tuple(legal_plans(host, single))
    for i, each in enumerate(asked):
        for j in (0, 1, len(table.plans) - 1):
            p = host.open([each.image], [each.question]).run(table.plans[j])
            assert table.prob[i, j] == pytest.approx(np.exp(p.score([each.answers])[0].logprob[0]), rel=1e-4)
            assert table.kv[i, j] == p.ledger[0].kv_bytes_end
    assert table.tokens[:, 0].tolist() == [16, 32, 32]
    assert np.allclose(table.groups["pixels"][1], table.groups["pixels"][2], atol=1e-6)
    assert not np.allclose(table.groups["pixels"][0], table.groups["pixels"][1])
    assert table.prob[1, 0] != table.prob[2, 0], "the order of pictures is seen"


def test_a_plan_that_some_input_cannot_have_is_left_out_or_named(host, inputs, single, tmp_path, monkeypatch):
    asked, real = several(inputs), type(host).forecast
    odd = Plan.of(prefill=("fastv", 0.5))

    def forecast(self, plan, shape, *rest):
        if plan["prefill"] == odd["prefill"] and len(shape.grids) > 1:
            raise ValueError("one picture only")
        return real(self, plan, shape, *rest)

    monkeypatch.setattr(type(host), "forecast", forecast)
    shapes = replay.layouts(host, asked)
    assert [len(shape.grids) for shape in shapes] == [1, 2]
    assert odd in legal_plans(host, single) and odd not in legal_plans(host, single, shapes)
    with pytest.raises(ValueError, match=r"plan prefill:fastv@0\.5: one picture only"):
        fill(host, asked, [UNCOMPRESSED, odd], tmp_path / "t.parquet", progress=False)


def test_an_input_that_cannot_be_put_to_the_model_is_named(host, inputs, tmp_path):
    wrong = dataclasses.replace(inputs[1], id="mine/7#0", question="what is <image> ?")
    with pytest.raises(ValueError, match=r"^mine/7#0: question 0: contains the image token"):
        fill(host, [inputs[0], wrong], [UNCOMPRESSED], tmp_path / "t", progress=False)
