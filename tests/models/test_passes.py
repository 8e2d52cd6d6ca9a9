"""Passes as wholes: plans for rows, forks, further questions, and stops."""

import gc
import weakref

import numpy as np
import pytest
import torch

from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.errors import BadInput, WrongStop
from foveate.models.features import reveal
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast

PLANS = [
    Plan.of(encoder=("tome", 0.5), prefill=("pyramiddrop", 0.5)),
    UNCOMPRESSED,
    BLIND,
    Plan.of(input=("downsample", 0.5), decode=("look_m", 0.5)),
    Plan.of(outside=("visionzip", 0.25), prefill=("fastv", 0.5)),
    Plan.of(projector=("average_pool", 0.25), decode=("random", 0.5)),
]


def test_every_row_may_have_its_own_plan(host, tiny):
    images = [tiny.picture(s) for s in range(6)]
    questions = [tiny.questions[s % 4] for s in range(6)]
    p = host.open(images, questions).run(PLANS)
    texts = p.decode(max_new_tokens=5)
    scores = p.score([["red", "one two"]] * 6)
    for row, plan in enumerate(PLANS):
        alone = host.open([images[row]], [questions[row]]).run(plan)
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        assert alone.decode(max_new_tokens=5) == [texts[row]]
        assert alone.score([["red", "one two"]])[0].logprob == pytest.approx(scores[row].logprob, abs=1e-4)
        assert alone.ledger[0] == p.ledger[row]
        assert {k: v[0] for k, v in alone.counts.items()} == {k: v[row] for k, v in p.counts.items()}


def test_a_ratio_of_one_leaves_every_bit_as_it_is(host, tiny):
    images, questions = [tiny.picture(0), tiny.picture(1)], tiny.questions[:2]
    plain, asked = host.open(images, questions), host.open(images, questions)
    plain.prefill()
    asked.encode(make("encoder", "tome"), 1.0)
    asked.thin(make("outside", "visionzip"), 1.0)
    asked.project(make("projector", "average_pool"), 1.0)
    asked.prefill(make("prefill", "fastv"), 1.0)
    asked.choose_decode(make("decode", "look_m"), 1.0)
    assert torch.equal(plain.logits, asked.logits)
    assert plain.score([["red"], ["one"]]) == asked.score([["red"], ["one"]])


@pytest.mark.parametrize("stop", ["open", "peek_encoder", "encode", "thin", "project", "peek", "prefill"])
def test_a_fork_goes_its_own_way_from_any_stop(host, tiny, stop):
    images, questions = [tiny.picture(0), tiny.picture(1)], tiny.questions[:2]
    p = host.open(images, questions)
    if stop != "open":
        getattr(p, stop)()
    forks = p.fork([1, 0, 1])
    if stop in ("peek", "project", "thin"):
        forks.prefill([make("prefill", "fastv"), None, make("prefill", "random")], [0.25, 1.0, 0.5])
    forks.choose_decode(make("decode", "look_m"), 0.5)
    p.prefill() if stop != "prefill" else None
    straight = host.open(images, questions)
    straight.prefill()
    assert torch.allclose(p.logits, straight.logits, atol=1e-6)
    assert p.ledger == straight.ledger
    wanted = host.open([images[1], images[0], images[1]], [questions[1], questions[0], questions[1]])
    if stop in ("peek", "project", "thin"):
        wanted.prefill([make("prefill", "fastv"), None, make("prefill", "random")], [0.25, 1.0, 0.5])
    wanted.choose_decode(make("decode", "look_m"), 0.5)
    assert torch.allclose(forks.logits, wanted.logits, atol=1e-5)
    assert forks.ledger == wanted.ledger
    assert forks.cached == wanted.cached
    assert p.cached[0][0] > forks.cached[1][0]  # the original's cache is whole


def test_a_fork_behind_a_tower_compressor_keeps_its_signals(host, tiny):
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.encode(make("encoder", "tome"), 0.5)
    fork = p.fork([1, 1])
    fork.thin([make("outside", "visionzip"), None], 0.5)
    direct = host.open([tiny.picture(1)], [tiny.questions[1]])
    direct.encode(make("encoder", "tome"), 0.5)
    direct.thin(make("outside", "visionzip"), 0.5)
    assert torch.allclose(fork.tokens[0].x, direct.tokens[0].x, atol=1e-5)
    assert [s.n for s in fork.tokens] == [4, 8]


def test_another_question_sees_what_a_fresh_pass_sees(host, tiny):
    images = [tiny.picture(0), tiny.picture(1)]
    p = host.open(images, tiny.questions[:2])
    p.thin(make("outside", "visionzip"), 0.5)
    p.decode(max_new_tokens=2)
    q = p.next_turn(tiny.questions[2:])
    assert (q.stop, p.stop) == ("projector", "prefill")
    q.prefill(make("prefill", "fastv"), 0.5)
    fresh = host.open(images, tiny.questions[2:])
    fresh.thin(make("outside", "visionzip"), 0.5)
    fresh.prefill(make("prefill", "fastv"), 0.5)
    assert torch.allclose(q.logits, fresh.logits, atol=1e-5)
    assert [row.seed for row in q.rows] == [row.seed for row in fresh.rows]
    with pytest.raises(BadInput, match="next_turn: 1 questions for 2 rows"):
        p.next_turn(["left ?"])


def test_stops_and_counts_tell_where_a_pass_stands(host, tiny):
    p = host.open([tiny.picture(0)], ["left ?"])
    assert p.stop == "open"
    with pytest.raises(WrongStop, match="nothing has run"):
        _ = p.tokens
    p.thin(make("outside", "random"), 0.5)
    assert (p.stop, p.counts) == ("outside", {"input": [16], "encoder": [16], "outside": [8]})
    assert p.tokens[0].stage == "outside"
    p.prefill(make("prefill", "pyramiddrop"), 0.5)
    assert p.counts["prefill"] == [4]
    assert p.counts["layers"] == [[8, 6, 5, 4]]
    assert p.ledger[0].tokens == {"input": 16, "encoder": 16, "outside": 8, "projector": 8, "prefill": 4}


def test_plans_must_be_as_many_as_rows(host, tiny):
    with pytest.raises(BadInput, match="run: 2 plans for 1 rows"):
        host.open([tiny.picture(0)], ["left ?"]).run([BLIND, BLIND])


def test_the_model_itself_is_left_as_it_was(folders, host, tiny):
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.model.modules())
    for plan in PLANS:
        host.open([tiny.picture(0)], ["left ?"]).run(plan).decode(max_new_tokens=3)
    after = host.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.model.modules()) == hooks


def test_bfloat16_runs_every_plan(folders, tiny):
    host = load_host(folders(text_tower=True), dtype="bfloat16")
    images = [tiny.picture(s) for s in range(6)]
    p = host.open(images, [tiny.questions[s % 4] for s in range(6)])
    assert all(np.isfinite(row).all() for row in reveal(p.fork(range(6)), "encoder"))
    p.run(PLANS)
    assert p.logits.isfinite().all()
    assert p.tokens[0].x.dtype == torch.bfloat16
    assert all(score.logprob[0] < 0 for score in p.score([["red"]] * 6))


@pytest.mark.parametrize("plan", ["outside:visionzip", "prefill:fastv", "decode:look_m"])
def test_a_pass_that_is_let_go_is_freed_at_once(host, tiny, plan):
    stage, name = plan.split(":")
    gc.disable()
    try:
        p = host.open([tiny.picture(0)], [tiny.questions[0]]).run(Plan.of(**{stage: (name, 0.5)}))
        p.decode(max_new_tokens=2)
        gone = weakref.ref(p)
        del p
        assert gone() is None
    finally:
        gc.enable()
