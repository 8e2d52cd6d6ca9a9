"""Videos whose tokens merge over frames, where places have three axes and words stand between frames."""

import numpy as np
import pytest

from foveate.plans.named import load_plan
from foveate.plans.plan import Plan
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast


def film(tiny, first, t=16):
    """Frames that go in pairs through the tower; four of each kind."""
    return Clip.of(np.stack([tiny.picture(first + i // 4, 24, 32) for i in range(t)]), 4.0)


@pytest.mark.parametrize(
    "plan",
    [Plan.of(projector=("prunevid", 0.5)), Plan.of(prefill=("prunevid", 0.5)), load_plan("prunevid")],
    ids=lambda plan: plan.label(),
)
def test_counts_keep_their_ceiling_and_a_row_ignores_its_batch_mates(kind, hosts, tiny, plan):
    host = hosts(kind)
    together = host.open([[film(tiny, 0)], [film(tiny, 9)]], tiny.QUESTIONS[:2]).run(plan)
    together.decode(max_new_tokens=4)
    for row in range(2):
        ceiling = host.forecast(plan, together.shapes[row], new_tokens=len(together.generated[row]))
        assert together.ledger[row].total <= ceiling.total
        assert 1 <= together.counts["prefill"][row] <= ceiling.tokens["prefill"]
    alone = host.open([[film(tiny, 9)]], tiny.QUESTIONS[1:2]).run(plan)
    alone.decode(max_new_tokens=4)
    assert alone.generated[0] == together.generated[1]
    assert {at: n[0] for at, n in alone.counts.items()} == {at: n[1] for at, n in together.counts.items()}
