"""Dropping and merging between decoder layers, held against slow twins that recompute everything."""

from dataclasses import dataclass

import pytest
import torch
from picked import Picked

from foveate.compressors.base import Reducer, Reduction
from foveate.compressors.registry import make
from foveate.models.errors import CountMismatch, HostError

pytestmark = pytest.mark.fast


def hidden(host, p, answer):
    """Embedded prompt and answer of a single-row pass, and the index of its first visual token."""
    row = p.rows[0]
    embed = host.decoder.embed
    visual = p.states["projector"][0].x
    start = row.first[0]
    front, back = torch.from_numpy(row.ids[:start]), torch.tensor([*row.ids[start + 16 :].tolist(), *answer])
    return torch.cat([embed(front), visual, embed(back)])[None], start


@torch.no_grad()
def twin(host, p, cuts, answer, renumber=False):
    """Log-probabilities of an answer when the whole sequence is recomputed with these cuts: {layer: indices left}."""
    decoder = host.decoder
    x, start = hidden(host, p, answer)
    n = p.states["projector"][0].n
    place = torch.arange(x.shape[1])[None]
    for index, layer in enumerate(decoder.layers):
        if index in cuts:
            keep = torch.tensor([*range(start), *(start + i for i in cuts[index]), *range(start + n, x.shape[1])])
            x, place, n = x[:, keep], place[:, keep], len(cuts[index])
            place = torch.arange(x.shape[1])[None] if renumber else place
        s = x.shape[1]
        mask = torch.ones(1, 1, s, s, dtype=torch.bool).tril()
        x = layer(x, attention_mask=mask, position_ids=place, position_embeddings=decoder.rotation(x, place[..., None]))
    logp = decoder.logits(x[0]).log_softmax(-1)
    ids = [*answer, 3]
    return sum(logp[-len(ids) + i, t].item() for i, t in enumerate(ids))


CUTS = [
    ((1, (0, 3, 5, 9, 15)),),
    ((2, (14,)),),
    ((1, (1, 2, 3, 4, 8, 9, 10, 12)), (2, (0, 6)), (3, (1,))),
]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("policy", ["keep", "renumber"])
def test_cutting_equals_a_full_recomputation(host, tiny, cuts, policy):
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    p.prefill(Picked(cuts, policy), 0.1)
    answer = "green thing two"
    ids = host.inputs.answer_ids(p.rows[0], answer)
    (score,) = p.score([[answer]])
    assert score.logprob[0] == pytest.approx(twin(host, p, dict(cuts), ids, policy == "renumber"), abs=1e-4)


@torch.no_grad()
def masked(host, p, layer_of_cut, kept):
    """Last-position logits when dropped visual tokens stay in place but are hidden as keys from their layer on."""
    decoder = host.decoder
    x, start = hidden(host, p, [])
    s, n = x.shape[1], p.states["projector"][0].n
    place = torch.arange(s)[None]
    hide = torch.ones(s, dtype=torch.bool)
    hide[[start + i for i in range(n) if i not in kept]] = False
    for index, layer in enumerate(decoder.layers):
        mask = torch.ones(1, 1, s, s, dtype=torch.bool).tril()
        if index >= layer_of_cut:
            mask = mask & (hide[None, None, None] | torch.eye(s, dtype=torch.bool))
        x = layer(x, attention_mask=mask, position_ids=place, position_embeddings=decoder.rotation(x, place[..., None]))
    return decoder.logits(x[0, -1])


@pytest.mark.parametrize("settings", [{"tower": "clip"}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_dropping_equals_masking_from_that_layer_on(hosts, tiny, settings, layer):
    host, kept = hosts(**settings), (2, 7, 8, 13)
    p = host.open([tiny.picture(4)], [tiny.questions[3]])
    p.prefill(Picked(((layer, kept),)), 0.25)
    assert torch.allclose(p.logits[0], masked(host, p, layer, kept), atol=1e-5)
    assert p.counts["layers"] == [[16] * layer + [4] * (4 - layer)]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "random", "stride"])
def test_rows_of_a_batch_do_not_see_each_other(host, tiny, name):
    images = [tiny.picture(s) for s in range(4)]
    methods, keeps = (
        [make("prefill", name), None, make("prefill", name), make("prefill", "fastv")],
        [0.5, 1.0, 0.25, 0.1],
    )
    p = host.open(images, tiny.questions)
    p.prefill(methods, keeps)
    together = p.score([["red"], ["one", "two three"], ["left"], ["blue"]])
    for row in range(4):
        alone = host.open(images[row : row + 1], tiny.questions[row : row + 1])
        alone.prefill(methods[row], keeps[row])
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)
        assert alone.counts["layers"][0] == p.counts["layers"][row]
        assert alone.ledger[0].total == sum(f for s, _, f, _ in p.ledger[row].entries if s != "score")
    alone = host.open(images[1:2], tiny.questions[1:2])
    assert together[1].logprob == pytest.approx(alone.score([["one", "two three"]])[0].logprob, abs=1e-4)


@dataclass(frozen=True)
class Halved(Reducer):
    """Merges neighbours two by two."""

    name = "halved"
    stages = ("prefill",)
    policy: str = "keep"

    @property
    def positions(self):
        return self.policy

    def sites(self, n, count, depth):
        return [(2, count)]

    def plan(self, tokens, count):
        b, n = tokens.position.shape
        anchor = torch.arange(1, n, 2).expand(b, -1)
        return Reduction(anchor, (torch.arange(n) // 2).expand(b, -1)[..., None], torch.full((b, n, 1), 0.5))


@pytest.mark.parametrize(
    ("policy", "places"), [("keep", [4, 6, 8, 10]), ("mean", [3, 5, 7, 9]), ("renumber", [3, 4, 5, 6])]
)
def test_merged_tokens_are_means_and_stand_where_the_method_says(host, tiny, policy, places):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    p.prefill(Halved(policy), 0.5)
    before, after = p.caches[1].stream, p.caches[2].stream
    assert before.visual[0].nonzero()[:, 0].tolist() == list(range(3, 19))
    with torch.no_grad():
        rotation = host.decoder.rotation(before.x, before.place)
        out, _ = host.decoder.layer(1, before, rotation)
    pairs = out[0, 3:19].view(8, 2, -1).mean(1)
    assert torch.allclose(after.x[0, 3:11], pairs, atol=1e-6)
    assert after.place[0, 3:7, 0].tolist() == places
    assert after.size[0, 3:11].tolist() == [2.0] * 8
    text_goes_on_at = after.place[0, 11, 0].item()
    assert text_goes_on_at == (11 if policy == "renumber" else 19)
    assert int(after.next_place[0]) == after.place[0, int(after.length[0]) - 1, 0].item() + 1


def test_a_cut_before_layer_0_is_refused(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(CountMismatch, match=r"picked: sites \[\(0, 1\)\] for 16 tokens; layers are 1..3"):
        p.prefill(Picked(((0, (3,)),)), 0.5)


def test_a_method_of_another_kind_is_refused(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    with pytest.raises(HostError, match="prefill, row 0: Downsample cannot act here"):
        p.prefill(make("input", "downsample"), 0.5)
