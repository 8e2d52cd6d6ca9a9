"""Caches read in part where ids have three coordinates, levels ride along, and prompts hold videos and pictures."""

import pytest
import torch
from fed import one_by_one

from foveate.compressors.registry import make
from foveate.models.answers import forced
from foveate.plans.plan import Plan

pytestmark = pytest.mark.fast

FED = [[9, 7, 6, 11, 9], [6, 6, 9, 8, 7]]


@pytest.fixture(scope="module")
def host(kind, hosts):
    return hosts(kind)


@pytest.mark.parametrize("prefill", [None, "pyramiddrop"])
def test_tokens_fed_together_are_as_one_by_one_and_a_row_ignores_its_batch_mate(host, tiny, prefill):
    pictures = [tiny.picture(0, 32, 48), tiny.picture(1, 24, 16)]
    shown, questions, together = [pictures, pictures[0]], ["what is this ?", "left ?"], []
    for images, asked in [(shown, questions), *(([i], [q]) for i, q in zip(shown, questions, strict=True))]:
        p = host.open(images, asked)
        p.prefill(prefill and make("prefill", prefill), 0.5 if prefill else 1.0)
        p.choose_decode(make("decode", "dycoke", layer=(2, 4)), 0.25)
        together.append(p)
    p, *alone = together
    single = one_by_one(p, [0, 1], FED)
    assert torch.allclose(single, forced(p, torch.arange(2), torch.tensor(FED)), atol=1e-5)
    for row in range(2):
        assert torch.allclose(one_by_one(alone[row], [0], FED[row : row + 1])[0], single[row], atol=1e-5)


def test_a_forecast_is_the_ledger_and_the_cache_stays_whole(host, tiny):
    plan, whole = Plan.of(decode=("dycoke", 0.25)), Plan.of()
    p, plain = (host.open([tiny.picture(0), tiny.picture(1)], tiny.QUESTIONS[:2]).run(by) for by in (plan, whole))
    p.decode(max_new_tokens=4)
    for row in range(2):
        assert p.ledger[row] == host.forecast(plan, p.shapes[row], new_tokens=len(p.generated[row]))
    assert p.cached == plain.cached
