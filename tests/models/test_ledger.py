"""Ledgers: what is charged is what is executed, and it is known before."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.learned import untrained
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models import load_host
from foveate.models.errors import HostError
from foveate.models.ledger import Ledger
from foveate.plans.cost import decoder_block, lm_head, patch_embed, projector, vit_block
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast

PLANS = [
    UNCOMPRESSED,
    BLIND,
    *[Plan.of(**{stage: (name, 0.25)}) for stage, name in sorted(COMPRESSORS)],
    Plan.of(encoder=("tome", 0.5), outside=("visionzip", 0.5), prefill=("pyramiddrop", 0.5), decode=("look_m", 0.5)),
    Plan.of(input=("downsample", 0.5), prefill=("fastv", 0.5)),
    Plan.of(outside=("tome", 0.5), prefill=("stride", 0.5), decode=("random", 0.5)),
]


def ids(plan):
    return plan.label()


def runnable(host, plan):
    try:
        host.forecast(plan, host.prompt_shape(9))
    except HostError as reason:
        pytest.skip(str(reason))


def opener(folders, eager):
    """Hosts of one module: hosts(tower="clip", ...), with an untrained network for each method that learns."""
    made = {}

    def get(**settings):
        key = str(settings)
        if key not in made:
            host = made[key] = load_host(folders(**settings))
            for model in (host.model, host.text and host.text.model) if eager else ():
                if model is not None:
                    model.set_attn_implementation("eager")
            for stage, name in (k for k, cls in COMPRESSORS.items() if cls.learned and host.forbids(*k) is None):
                network = untrained(make(stage, name), host.widths, host.matrices()).network
                host.learned[stage, name] = network.eval().requires_grad_(False)
        return made[key]

    return get


@pytest.fixture(scope="module")
def eager_hosts(folders):
    return opener(folders, eager=True)


@pytest.fixture(scope="module")
def own_hosts(folders):
    return opener(folders, eager=False)


def test_an_uncompressed_pass_costs_what_the_formulas_say(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill()
    shape, s = host.shape, p.shapes[0].n_text + 16
    stages = p.ledger[0].by_stage("matrix")
    assert stages["encoder"] == patch_embed(shape.vit, 16) + 3 * vit_block(shape.vit, 17)  # the fourth block never runs
    assert stages["projector"] == projector(shape, 16)
    assert stages["prefill"] == 4 * decoder_block(shape.decoder, s) + lm_head(shape.decoder, 1)
    assert p.ledger[0].kv_bytes_prefill == 2 * 4 * (2 * 8) * 4 * s  # keys and values, 4 bytes, 2 heads of 8, 4 layers


@pytest.mark.parametrize("plan", PLANS, ids=ids)
@pytest.mark.parametrize(
    "settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}, {"strategy": "full"}], ids=str
)
def test_matrix_flops_are_those_that_torch_counts(eager_hosts, tiny, plan, settings):
    host = eager_hosts(**settings)
    runnable(host, plan)
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    with FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=4)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_scores_are_counted_apart(eager_hosts, tiny):
    host = eager_hosts(text_tower=True)
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.prefill()
    before = p.ledger[0].total
    with FlopCounterMode(display=False) as counter:
        p.score([["green thing two"]])
    assert p.ledger[0].by_stage("matrix")["score"] == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert p.ledger[0].total == before


@pytest.mark.parametrize("plan", PLANS, ids=ids)
@pytest.mark.parametrize(
    "settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}, {"strategy": "full"}], ids=str
)
def test_a_forecast_is_the_ledger_of_the_pass(own_hosts, tiny, plan, settings):
    host = own_hosts(**settings)
    runnable(host, plan)
    p = host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2])
    p.run(plan)
    p.decode(max_new_tokens=3)
    for row in range(2):
        wanted = host.forecast(plan, p.shapes[row], new_tokens=len(p.generated[row]))
        assert wanted == p.ledger[row]
        assert wanted.total > 0


@pytest.mark.parametrize(
    "plan", [UNCOMPRESSED, Plan.of(prefill=("fastv", 0.5)), Plan.of(outside=("visionzip", 0.5))], ids=ids
)
def test_a_second_question_costs_what_it_makes_anew(host, tiny, plan):
    p = host.open([tiny.picture(0)], ["what is this ?"])
    p.run(plan)
    p.decode(max_new_tokens=2)
    first = p.ledger[0].copy()
    q = p.next_turn(["what is there ?"])
    for stage, choice in plan.active:
        if stage == "prefill":
            q.prefill(make(stage, choice.method), choice.keep)
    q.choose_decode(None)
    q.decode(max_new_tokens=2)
    assert q.ledger[0] == host.forecast(plan, p.shapes[0], new_tokens=2, turns=2)
    assert q.ledger[0].by_stage()["encoder"] == first.by_stage()["encoder"]
    assert q.ledger[0].by_stage()["prefill"] == 2 * first.by_stage()["prefill"]
    assert p.ledger[0] == first
    fresh = host.open([tiny.picture(0)], ["what is there ?"])
    fresh.run(plan)
    fresh.decode(max_new_tokens=2)
    assert fresh.generated == q.generated


def test_forecasts_refuse_what_cannot_be_given(host):
    with pytest.raises(HostError, match=r"projector: average_pool cannot give 8 of 16 tokens on grid \(1, 4, 4\)"):
        host.forecast(Plan.of(projector=("average_pool", 0.5)), host.prompt_shape(9))
    with pytest.raises(HostError, match="average_pool: needs a whole grid"):
        host.forecast(Plan.of(outside=("stride", 0.5), projector=("average_pool", 0.5)), host.prompt_shape(9))
    with pytest.raises(HostError, match="no method 'fastw' at stage 'prefill'; near: fastv"):
        host.forecast(Plan.of(prefill=("fastw", 0.5)), host.prompt_shape(9))
    with pytest.raises(ValueError, match="n_text 0"):
        host.forecast(UNCOMPRESSED, host.prompt_shape(0))


def test_compressed_plans_cost_less(host):
    full = host.forecast(UNCOMPRESSED, host.prompt_shape(9)).total
    blind = host.forecast(BLIND, host.prompt_shape(9)).total
    for plan in (Plan.of(outside=("random", 0.25)), Plan.of(prefill=("fastv", 0.25)), Plan.of(encoder=("tome", 0.25))):
        assert blind < host.forecast(plan, host.prompt_shape(9)).total < full


def test_a_ledger_is_plain_data_and_refuses_nonsense():
    ledger = Ledger()
    ledger.add("prefill", "layers", 10)
    ledger.add("prefill", "layers", 5)
    ledger.add("prefill", "layers", 2, "other")
    ledger.add("score", "layers", 7)
    assert (ledger.total, ledger.matrix_total, ledger.by_stage()) == (17, 15, {"prefill": 17, "score": 7})
    assert ledger.to_dict()["entries"][0] == {"stage": "prefill", "what": "layers", "flops": 15, "kind": "matrix"}
    assert ledger == ledger.copy()
    with pytest.raises(ValueError, match="kind 'magic'"):
        ledger.add("prefill", "layers", 1, "magic")


def test_the_counter_would_notice_a_missing_layer(eager_hosts, tiny):
    host = eager_hosts(text_tower=True)
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    with FlopCounterMode(display=False) as counter:
        p.prefill()
        host.decoder.layers[0].mlp(torch.zeros(1, 30, 32))
    assert p.ledger[0].matrix_total != pytest.approx(counter.get_total_flops(), rel=0.01)
