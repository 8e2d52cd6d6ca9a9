import numpy as np
import pytest

from foveate.envs.live import judge
from foveate.envs.masks import Masks
from foveate.models.features import reveal
from foveate.plans import BLIND, STAGES, UNCOMPRESSED, ActionTable, Plan, all_plans, plan_refusal
from foveate.rollouts.worker import Ask, Worker, before


@pytest.fixture(scope="module")
def plans(host, portfolio):
    rules = Masks(host, ActionTable.from_portfolio(portfolio)).rules()
    return [plan for plan in all_plans(portfolio) if plan_refusal(plan, rules, 2) is None]


def test_every_plan_gives_what_it_gives_alone(host, inputs, plans):
    some = inputs[:3]
    found = Worker(host, 4, batch=2).run([Ask(each, plan) for each in some for plan in plans])
    assert len(plans) == 26
    for (each, plan), verdict in zip([(each, plan) for each in some for plan in plans], found, strict=True):
        p = host.open([each.image], [each.question]).run(plan)
        alone = judge(p, [each], [None], 4)[0]
        assert verdict.bill == alone.bill and verdict.bill.own == host.forecast(plan, p.shapes[0], 4).total, plan
        assert (verdict.tokens, verdict.kv, verdict.outcome.correct) == (
            alone.tokens,
            alone.kv,
            alone.outcome.correct,
        )
        assert verdict.outcome.prob == pytest.approx(alone.outcome.prob, rel=1e-4)


def test_stops_show_what_a_pass_shows_there(host, inputs):
    plan = Plan.of(encoder=("tome", 0.5), prefill=("fastv", 0.5))
    found = Worker(host).run([Ask(inputs[0], plan, stage) for stage in STAGES])
    for stage, group in (("encoder", "block1"), ("outside", "encoder"), ("prefill", "layer1")):
        p = host.open([inputs[0].image], [inputs[0].question])
        if stage != "encoder":
            from foveate.compressors.registry import make

            p.encode(make("encoder", "tome"), 0.5)
        seen = found[STAGES.index(stage)]
        assert np.allclose(seen.features, reveal(p, group)[0], atol=1e-5)
        total = seen.bill.own + seen.bill.features
        assert total == p.ledger[0].total
    assert [seen.tokens_left for seen in found] == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert found[0].features is None and found[0].bill.own == 0


def test_what_plans_share_runs_once(host, inputs, monkeypatch):
    rows = []
    run = type(host.tower).run
    monkeypatch.setattr(
        type(host.tower), "run", lambda self, group, *rest: rows.append(len(group.views)) or run(self, group, *rest)
    )
    plans = [
        UNCOMPRESSED,
        Plan.of(outside=("visionzip", 0.5)),
        Plan.of(prefill=("fastv", 0.5)),
        Plan.of(decode=("look_m", 0.5)),
    ]
    asks = [Ask(each, plan) for each in inputs[:3] for plan in plans]
    Worker(host).run([*asks, *asks, Ask(inputs[0], BLIND)])
    assert sum(rows) == 3  # the tower has seen each picture once


def test_a_batch_is_never_larger_than_asked_for(host, inputs, monkeypatch):
    from foveate.models.passes import Pass

    sizes = []
    peek = Pass.peek
    monkeypatch.setattr(Pass, "peek", lambda self: sizes.append(len(self)) or peek(self))
    Worker(host, batch=2).run([Ask(each, plan) for each in inputs for plan in (UNCOMPRESSED, BLIND)])
    assert max(sizes) == 2


def test_own_answers_are_scored_where_references_are_given(host, inputs):
    worker = Worker(host, batch=3)
    references = worker.references(inputs[:4])
    assert [r.answer for r in references] == [each.answers[0] for each in inputs[:4]]
    known = {id(each): r for each, r in zip(inputs[:2], references, strict=False)}
    found = worker.run([Ask(each, UNCOMPRESSED) for each in inputs[:4]], known)
    for verdict, reference in zip(found[:2], references, strict=False):
        assert verdict.outcome.own == pytest.approx(reference.prob, rel=1e-5)
    assert [verdict.outcome.own for verdict in found[2:]] == [None, None]


def test_prefixes_of_plans():
    plan = Plan.of(input=("downsample", 0.25), prefill=("fastv", 0.5))
    assert before(plan, 4) == Plan.of(input=("downsample", 0.25)) and before(plan, 6) == plan
    assert before(plan, 0) == UNCOMPRESSED
    with pytest.raises(ValueError, match="batch = 0"):
        Worker(None, batch=0)
