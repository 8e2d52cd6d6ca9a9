"""Windows in other families: where visual tokens stand together they run, where words stand between it is said."""

import numpy as np
import pytest
import tiny_anyres
import tiny_shuffle
import torch
import windowed

from foveate.models import load_host
from foveate.models.errors import HostError
from foveate.plans.plan import Plan

CASES = {
    "internvl": (tiny_shuffle, {}),
    "internvl, norms of heads": (tiny_shuffle, {"decoder": "qwen3"}),
    "smolvlm": (tiny_shuffle, {}),
    "llava_next": (tiny_anyres, {}),
    "llava_onevision": (tiny_anyres, {}),
}
NEVER = ("smolvlm", "llava_next")  # markers stand around each tile, newlines behind each row of tokens


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A host with weights for Video-XL, its module of tiny models, and whether anything can run there."""
    torch.set_num_threads(1)
    module, settings = CASES[request.param]
    family = request.param.split(",")[0]
    host = load_host(module.build(tmp_path_factory.mktemp("windows"), family, **settings))
    host.learned["prefill", "video_xl"] = windowed.video_xl(host).network
    return host, module, family not in NEVER


def shown(module):
    """Pictures of a view's size and larger ones, two of them, and a film."""
    film = np.stack([module.picture(i, 32, 32) for i in range(3)])
    two = [module.picture(3, 32, 32), module.picture(4, 32, 32)]
    return [module.picture(1, 32, 32), module.picture(2, 70, 40), two, film]


def test_visual_tokens_that_stand_together_run_and_others_are_refused_before_and_in_the_pass(case):
    host, module, runs = case
    ran = 0
    for image in shown(module):
        try:
            p = host.open([image], ["what is this ?"])
        except ValueError:
            continue  # a family that takes no films here
        n = p.shapes[0].n_visual
        plan = Plan.of(prefill=("video_xl", max(1, round(n / 4)) / n))
        if p.shapes[0].before is None:
            with pytest.raises(HostError, match="video_xl: windows need visual tokens that stand together"):
                host.forecast(plan, p.shapes[0])
            with pytest.raises(HostError, match="row 0: windows need visual tokens that stand together"):
                p.run(plan)
            continue
        ran += 1
        p.run(plan)
        assert p.ledger[0] == host.forecast(plan, p.shapes[0]) and p.logits.isfinite().all()
        entries = len(p.rows[0].ids) - n + round(n / 4)
        assert p.cached == [[entries] * host.decoder_depth] and p.decode(max_new_tokens=1)
    assert bool(ran) == runs
