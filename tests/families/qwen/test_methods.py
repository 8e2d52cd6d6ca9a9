"""Every registered method on both families: what runs keeps its counts and its ledger, what cannot says why."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.base import Resampler
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models import load_host
from foveate.models.errors import HostError
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Plan, keep_count

pytestmark = pytest.mark.matrix
RATIOS = (0.75, 0.5, 0.1)
CELLS = [pytest.param(stage, name, id=f"{stage}:{name}") for stage, name in sorted(COMPRESSORS)]
MIXED = Plan.of(input=("downsample", 0.5), outside=("tome", 0.5), prefill=("pyramiddrop", 0.5), decode=("look_m", 0.5))


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


@pytest.fixture(scope="module")
def eager(kind, folders):
    host = load_host(folders(kind))
    host.model.set_attn_implementation("eager")
    return host


def rows(tiny):
    """Grids of 4 x 6, 6 x 4 and two pictures of 2 x 4 and 4 x 4."""
    return (
        [tiny.picture(0, 32, 48), tiny.picture(1, 48, 32), [tiny.picture(2, 16, 32), tiny.picture(3, 32, 32)]],
        tiny.QUESTIONS[:3],
    )


def refused(host, stage, name):
    reason = host.supports(stage, name)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(("stage", "name"), CELLS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_counts_are_those_asked_for_and_the_forecast_is_the_ledger(host, tiny, stage, name, ratio):
    refused(host, stage, name)
    plan = Plan.of(**{stage: (name, ratio)})
    p = host.open(*rows(tiny))
    wanted = []
    for row in p.rows:
        try:
            wanted.append(host.forecast(plan, row.shape, new_tokens=3))
        except HostError as reason:
            pytest.skip(str(reason))
    p.run(plan)
    p.decode(max_new_tokens=3)
    method, per_view = make(stage, name), stage in ("outside", "projector")
    for i, row in enumerate(p.rows):
        grids = [v.grid[1] * v.grid[2] for v in row.views]
        most = sum(keep_count(n, ratio) for n in grids) if per_view else keep_count(sum(grids), ratio)
        left = p.counts[stage][i]
        assert 1 <= left <= max(most, len(grids)) if method.adaptive or stage == "input" else left == most
        if len(p.generated[i]) == 3 and not method.adaptive:
            assert p.ledger[i] == wanted[i]
    assert torch.isfinite(p.logits).all()


@pytest.mark.parametrize("plan", [UNCOMPRESSED, BLIND, MIXED], ids=lambda plan: plan.label())
def test_forecasts_of_whole_plans_are_ledgers(host, tiny, plan):
    p = host.open(*rows(tiny))
    p.run(plan)
    p.decode(max_new_tokens=3)
    for i, row in enumerate(p.rows):
        assert p.ledger[i] == host.forecast(plan, row.shape, new_tokens=len(p.generated[i]))


PLANS = [
    UNCOMPRESSED,
    BLIND,
    MIXED,
    *[Plan.of(**{stage: (name, 0.4)}) for stage, name in sorted(COMPRESSORS)],
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.label())
def test_matrix_flops_are_those_that_torch_counts(eager, tiny, plan):
    """One row of two pictures, 3 x 4 and 4 x 4 tokens: windows are cut off at a border."""
    p = eager.open([[tiny.picture(0, 24, 32), tiny.picture(1, 32, 32)]], ["what is this ?"])
    try:
        eager.forecast(plan, p.rows[0].shape)
    except HostError as reason:
        pytest.skip(str(reason))
    with FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=2)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 3), (5, 4)], ids=str)
def test_a_tower_costs_what_torch_counts_whatever_the_picture(eager, tiny, grid):
    p = eager.open([tiny.picture(0, 8 * grid[0], 8 * grid[1])], ["left ?"])
    p.laid = p.rows = [eager.relaid(p.rows[0], [(1, *grid)])]  # the processor would enlarge the smallest
    with FlopCounterMode(display=False) as counter:
        p.project()
    assert p.ledger[0].matrix_total == counter.get_total_flops()


def test_a_pool_makes_new_tokens_where_no_levels_ride_along(hosts, tiny):
    host = hosts("qwen2_5_vl")
    plan = Plan.of(projector=("average_pool", 0.25))
    p = host.open([[tiny.picture(0, 32, 48), tiny.picture(1, 32, 32)]], ["what is this ?"])
    for stage in STAGES[:-1]:
        p.run_stage(stage, [plan])
    stream = p.caches[-1].stream  # the cache's own stage lets go of it
    p.run_stage(STAGES[-1], [plan])
    p.decode(max_new_tokens=3)
    assert p.counts["projector"] == [6 + 4]
    assert [state.grid for state in p.states["projector"]] == [(1, 2, 3), (1, 2, 2)]
    assert stream.place[0].tolist() == [[i] * 3 for i in range(int(stream.length))]
    assert p.ledger[0] == host.forecast(plan, p.rows[0].shape, new_tokens=len(p.generated[0]))
    with pytest.raises(HostError, match="average_pool: makes new tokens, and this host adds features of the old ones"):
        hosts("qwen3_vl").forecast(plan, p.rows[0].shape)


def test_what_the_family_cannot_do_is_said(host, kind):
    for stage, name in sorted(COMPRESSORS):
        reason = host.supports(stage, name)
        if stage == "encoder":
            assert "wants whole units of 4" in reason
        elif issubclass(COMPRESSORS[stage, name], Resampler) and kind == "qwen3_vl":
            assert "later layers" in reason
        elif COMPRESSORS[stage, name].modality == "video" or COMPRESSORS[stage, name].learned:
            assert reason is not None
        elif missing := COMPRESSORS[stage, name].kinds - host.signals:
            assert f"needs the signal {', '.join(sorted(missing))}" in reason
        else:
            assert reason is None, (stage, name)
