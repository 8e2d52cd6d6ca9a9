"""Methods for videos that choose their own number of tokens, in a host: ceilings, costs, answers in any batch."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.plans.named import load_plan
from foveate.plans.plan import Plan

PLANS = [
    *(Plan.of(projector=("longvu", keep)) for keep in (0.1, 0.25, 0.5, 0.75)),
    *(Plan.of(projector=("prunevid", keep)) for keep in (0.1, 0.4, 0.9)),
    Plan.of(prefill=("prunevid", 0.4)),
    load_plan("prunevid"),
]


def film(tiny, first=0, t=8):
    """Frames of which each is there twice."""
    return np.stack([tiny.picture(first + i // 2) for i in range(t)])


def ran(host, films, questions, plan):
    p = host.open(films, questions).run(plan)
    p.decode(max_new_tokens=3)
    return p


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.label())
def test_counts_and_costs_stay_under_what_is_known_before_and_a_row_ignores_its_batch_mates(host, tiny, plan):
    together = ran(host, [film(tiny), film(tiny, 7)], tiny.questions[:2], plan)
    stage, choice = plan.active[0]
    for row in range(2):
        ceiling = host.forecast(plan, together.shapes[row], new_tokens=len(together.generated[row]))
        assert 1 <= together.counts[stage][row] <= round(128 * choice.keep)
        assert together.ledger[row].total <= ceiling.total
        assert together.ledger[row].by_stage("matrix")[stage] == ceiling.by_stage("matrix")[stage]
    alone = ran(host, [film(tiny, 7)], tiny.questions[1:2], plan)
    assert alone.generated[0] == together.generated[1]
    assert [alone.counts[at][0] for at in alone.counts] == [together.counts[at][1] for at in alone.counts]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.label())
def test_matrix_flops_are_those_that_torch_counts(fresh, tiny, plan):
    for model in (fresh.model, fresh.text.model):
        model.set_attn_implementation("eager")
    p = fresh.open([film(tiny)], [tiny.questions[1]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=4)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("plan", [PLANS[0], PLANS[-1]], ids=lambda plan: plan.label())
def test_a_picture_is_no_video(host, plan):
    for stage, choice in plan.active:
        assert "is for videos" in host.supports(stage, choice.method)
        assert host.supports(stage, choice.method, frames=4) is None


def test_without_a_text_tower_what_reads_the_question_is_masked(hosts):
    reason = hosts(tower="siglip").supports("projector", "longvu", frames=4)
    assert reason == "longvu: needs the signal text_similarity, which this host has not"


def test_what_prunevid_drops_in_the_decoder_leaves_every_cache_and_no_frame_goes_with_it(host, tiny):
    p = host.open([film(tiny)], tiny.questions[:1]).run(load_plan("prunevid"))
    words, left = p.shapes[0].n_text, round(0.4 * p.counts["projector"][0])
    assert p.counts["projector"] == [51] and left == 20
    assert p.counts["layers"] == [[51, 51, 20, 20]]  # layer 1 of 4 is read, and runs with all
    assert [cache.entries(0) for cache in p.caches] == [words + 20] * 4
    stream = p.opened.stream
    frame = stream.position[0, stream.visual[0]] // 16
    before = p.states["projector"][0].position // 16
    assert frame.unique().tolist() == before.unique().tolist()  # no frame loses all
    plain = host.open([film(tiny)], tiny.questions[:1])
    plain.project(host.make("projector", "prunevid"), 0.4)
    plain.prefill()
    assert torch.equal(p.caches[0].next_place, plain.caches[0].next_place)  # the answer's places are as without
