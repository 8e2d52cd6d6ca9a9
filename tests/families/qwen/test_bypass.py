"""Tokens that go around layers where places have three coordinates and deeper levels of the tower are added."""

import bypassed
import pytest
import torch

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("rows", [1, 3], ids=["single", "padded"])
def test_packing_is_masking(hosts, original, kind, tiny, rows):
    host, model = hosts(kind), original(kind)
    sizes, method = [(32, 48), (48, 32), (16, 56)], bypassed.p_mod(hosts(kind))
    p = host.open([tiny.picture(s, *sizes[s]) for s in range(rows)], tiny.QUESTIONS[:rows])
    p.prefill(method, 0.25)
    for row, (height, width) in enumerate(sizes[:rows]):
        n = height * width // 64
        count = round(n * 0.25)
        left = {1: max(int(0.75 * n + 1e-9), count), 2: max(int(0.25 * n + 1e-9), count), 3: count}
        assert p.counts["layers"][row] == [n, *left.values()]
        ids = host.inputs.answer_ids(p.rows[row], "red thing")
        wanted = bypassed.twin(model, p, row, method, left, ids)
        assert torch.allclose(p.logits[row], wanted[0], atol=1e-5)
        assert [int(cache.next_place[row]) for cache in p.caches] == [p.rows[row].next_place] * 4
        (score,) = p.fork([row]).score([["red thing"]])
        logp = wanted.log_softmax(-1)
        end = logp[2, sorted(host.ends)].logsumexp(0)
        assert len(ids) == 2 and score.logprob[0] == pytest.approx(float(logp[[0, 1], ids].sum() + end), abs=1e-4)
