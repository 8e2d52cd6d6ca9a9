"""Token features: ranges, meaning, independence of rows, and their cost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.compressors.registry import make
from foveate.models import features, load_host, signals
from foveate.models.features import TOKEN_FEATURES, feature_flops, reveal
from foveate.models.signals import numbers

pytestmark = pytest.mark.fast

GROUPS = tuple(TOKEN_FEATURES)


def named(p, group, row=0):
    return dict(zip(TOKEN_FEATURES[group], reveal(p, group)[row].tolist(), strict=True))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip"}, {"strategy": "full"}], ids=str)
def test_values_are_finite_in_range_and_differ_between_inputs(hosts, tiny, settings, group):
    p = hosts(**settings).open([tiny.picture(s) for s in range(4)], tiny.questions)
    rows = reveal(p, group)
    assert [row.dtype for row in rows] == [np.float32] * 4
    for row in rows:
        assert row.shape == (len(TOKEN_FEATURES[group]),)
        assert np.isfinite(row).all()
        low = [-1 if "cosine" in name or name.startswith("text") else 0 for name in TOKEN_FEATURES[group]]
        assert (row >= np.array(low) - 1e-5).all()
        assert (row <= 1 + 1e-5).all()
    assert not np.allclose(rows[0], rows[1])


@pytest.mark.parametrize("group", GROUPS)
def test_a_row_does_not_depend_on_its_batch_mates(host, tiny, group):
    images = [tiny.picture(s) for s in range(3)]
    p = host.open(images, tiny.questions[:3])
    p.blind([2])
    p.encode([make("encoder", "tome"), None, None], 0.5) if group != "block1" else None
    together = reveal(p, group)
    for row in range(2):
        alone = host.open(images[row : row + 1], tiny.questions[row : row + 1])
        if group != "block1":
            alone.encode(make("encoder", "tome") if row == 0 else None, 0.5)
        assert np.allclose(reveal(alone, group)[0], together[row], atol=1e-4)
    assert not together[2].any()  # nothing to look at


@pytest.mark.parametrize(
    ("pattern", "near", "edges", "common", "background"),
    [
        ("aaaa aaaa aaaa aaaa", 1.0, 0.0, 1.0, 1.0),
        (
            "abab baba abab baba",
            0.0,
            1.0,
            56 / 120,
            0.0,
        ),  # 2 * (8 * 7 / 2) of 120 pairs are alike; cos to the mean is 0.71
        ("aaaa aaaa aaaa aaab", 22 / 24, 2 / 24, 105 / 120, 15 / 16),
    ],
)
def test_likeness_of_tokens_is_counted_pair_by_pair(host, tiny, pattern, near, edges, common, background):
    p = host.open([tiny.picture(0)], ["left ?"])
    p.peek_encoder()
    letters = {"a": torch.eye(24)[0], "b": 3 * torch.eye(24)[1]}
    x = torch.stack([letters[c] for c in pattern.replace(" ", "")])
    if "abab" in pattern:
        x = x / x.norm(dim=1, keepdim=True)
    p.states["peek"] = [replace(p.states["peek"][0], x=x)]
    found = named(p, "block1")
    assert found["neighbour_cosine"] == pytest.approx(near, abs=1e-5)
    assert found["edge_share"] == pytest.approx(edges, abs=1e-5)
    assert found["common_cosine"] == pytest.approx(common, abs=1e-5)
    assert found["background_share"] == pytest.approx(background, abs=1e-5)
    rank = len(set(pattern.replace(" ", ""))) - 1  # centred tokens of two kinds lie on one line
    assert found["participation"] == pytest.approx(rank / 16, abs=1e-5)


def test_cls_features_are_those_of_the_models_attention(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    found = named(p, "encoder")
    block = host.tower.layers[2]
    with torch.no_grad():
        normed = block.layer_norm1(p.traces[0][0].inputs[2].x)
        q, k = (host.tower.split(project(normed)) for project in (block.self_attn.q_proj, block.self_attn.k_proj))
        share = (q[:, :, :1] @ k.transpose(-1, -2) / 8**0.5).softmax(-1)[0, :, 0, 1:].mean(0)
    share = (share / share.sum()).numpy()
    assert found["cls_peak"] == pytest.approx(share.max(), abs=1e-5)
    assert found["cls_top"] == pytest.approx(share.max(), abs=1e-5)  # a tenth of sixteen is one
    assert found["cls_entropy"] == pytest.approx(-(share * np.log(share)).sum() / np.log(16), abs=1e-5)
    rows, columns = np.divmod(np.arange(16), 4)
    centre = (share * rows).sum() / 4, (share * columns).sum() / 4
    reach = ((share * ((rows / 4 - centre[0]) ** 2 + (columns / 4 - centre[1]) ** 2)).sum() / 0.5) ** 0.5
    assert found["cls_reach"] == pytest.approx(reach, abs=1e-5)


def test_the_layer_features_read_the_last_prompt_token(host, tiny):
    p = host.open([tiny.picture(0)], [tiny.questions[0]])
    found = named(p, "layer1")
    stream, n = p.opened.stream, int(p.opened.stream.length[0])
    with torch.no_grad():
        said = host.decoder.logits(stream.x[0, n - 1]).softmax(-1).sort(descending=True).values
    assert found["lens_margin"] == pytest.approx((said[0] - said[1]).item(), abs=1e-6)
    assert 0 < found["visual_mass"] < 1
    assert found["peak"] >= found["top"] - 1e-6  # a tenth of sixteen is one


def test_looking_changes_nothing_but_the_bill(host, tiny):
    looked, plain = (host.open([tiny.picture(0)], [tiny.questions[0]]) for _ in range(2))
    reveal(looked, "block1")
    looked.encode(make("encoder", "tome"), 0.5)
    reveal(looked, "encoder")
    looked.thin(make("outside", "visionzip"), 0.5)
    reveal(looked, "layer1")
    looked.prefill(make("prefill", "fastv"), 0.5)
    plain.encode(make("encoder", "tome"), 0.5)
    plain.thin(make("outside", "visionzip"), 0.5)
    plain.prefill(make("prefill", "fastv"), 0.5)
    assert torch.equal(looked.logits, plain.logits)
    bill = looked.ledger[0].by_stage()
    paid = bill.pop("features")
    assert bill == plain.ledger[0].by_stage()
    assert 0 < paid <= sum(feature_flops(host, looked.shapes[0]).values())


@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip"}], ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_the_forecast_is_exact_for_uncompressed_rows(hosts, tiny, settings, group):
    host = hosts(**settings)
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    reveal(p, group)
    assert p.ledger[0].by_stage()["features"] == feature_flops(host, p.shapes[0])[group]
    assert feature_flops(host)[group] >= feature_flops(host, p.shapes[0])[group]


def test_matrix_flops_are_those_that_torch_counts(folders, tiny):
    host = load_host(folders(text_tower=True))
    host.model.set_attn_implementation("eager")
    host.text.model.set_attn_implementation("eager")
    p = host.open([tiny.picture(0)], [tiny.questions[1]])
    with FlopCounterMode(display=False) as counter:
        for group in GROUPS:
            reveal(p, group)
    bill = p.ledger[0].by_stage("matrix")
    paid = bill.pop("features")
    assert sum(bill.values()) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert paid > 0.01 * counter.get_total_flops()  # else the next test proves nothing


def test_flops_of_features_cover_the_products_that_numpy_computes(hosts, tiny, monkeypatch):
    """Features are computed in numpy: every array that they start from counts the products it takes part in."""
    count = [0]

    class Counted(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            plain = [np.asarray(each) for each in inputs]
            kwargs |= {"out": tuple(np.asarray(each) for each in kwargs["out"])} if "out" in kwargs else {}
            out = getattr(ufunc, method)(*plain, **kwargs)
            if ufunc in (np.matmul, np.vecdot):
                count[0] += 2 * np.size(out) * plain[0].shape[-1]
            return out.view(Counted) if isinstance(out, np.ndarray) else out

    for module in (features, signals):
        monkeypatch.setattr(module, "numbers", lambda x: numbers(x).view(Counted))
    p = hosts(text_tower=True).open([tiny.picture(0)], [tiny.questions[1]])
    for group in GROUPS:
        reveal(p, group)
    # sums that are written as products stand under "other" in the ledger
    assert count[0] <= p.ledger[0].by_stage()["features"] <= 1.25 * count[0]


def test_an_unknown_group_is_named(host, tiny):
    with pytest.raises(ValueError, match="unknown group 'block2'; known: block1, encoder, layer1"):
        reveal(host.open([tiny.picture(0)], ["left ?"]), "block2")
