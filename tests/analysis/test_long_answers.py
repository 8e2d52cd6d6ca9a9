"""Long answers under methods in the cache: own words, what is compared, and the page."""

from __future__ import annotations

import json

import pytest
import torch

from foveate.analysis import long_answers
from foveate.analysis.long_answers import (
    Found,
    Own,
    compared,
    going_on,
    main,
    markdown,
    measured,
    opened,
    own_words,
    under_own_words,
    written,
)
from foveate.analysis.readouts import Grade
from foveate.analysis.walls import Wall
from foveate.plans.plan import UNCOMPRESSED, Plan

HALF = Plan.of(decode=("random", 0.5))
HEADER = {
    **{"command": "python -m it", "model": "toy", "fingerprint": "0123456789abcdef", "machine": "a box"},
    **{"device": "cpu", "threads": 1, "versions": {"torch": "9"}, "split": "test", "pages": 3, "n": 2},
    **{"tokens": 64, "rounds": 5, "seed": 7, "written": ["tables", "reading"]},
}


def test_inputs_are_drawn_by_the_seed_and_are_different_pages():
    first, again, other = (written(("tables", "transcript"), "test", 3, seed) for seed in (0, 0, 1))
    assert [each.id for each in first] == [each.id for each in again] != [each.id for each in other]
    assert [each.regime for each in first] == ["tables"] * 3 + ["transcript"] * 3
    assert len({each.id for each in first}) == 6 and first[3].template == "whole_page"


def test_own_words_are_greedy_as_long_as_asked_and_hold_no_end(host, inputs):
    ids, full = own_words(host, inputs[:3], 9)
    assert ids.shape == (3, 9) and not set(ids.flatten().tolist()) & host.ends
    vocabulary = host.decoder.head.weight.shape[0]
    assert full.shape == (3, 9, vocabulary - len(host.ends))
    assert torch.allclose(full.exp().sum(-1), torch.ones(3, 9), atol=1e-5)
    goes_on = torch.tensor([token for token in range(vocabulary) if token not in host.ends])
    assert torch.equal(goes_on[full.argmax(-1)], ids), "each token is the likeliest behind those before it"


def test_agreement_and_divergence_by_hand():
    full = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.5 - 2e-7, 2e-7]]], dtype=torch.double).log()
    other = torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.5 - 2e-7, 2e-7]]], dtype=torch.double).log()
    found = compared(full, other)
    first = 0.5 * torch.tensor(2.0).log() - 0.25 * torch.tensor(2.0).log()
    assert found.agree == 0.5 and found.kl == pytest.approx(float(first) / 2)
    assert compared(full, full) == Own(1.0, 0.0)


def test_a_plan_that_changes_nothing_agrees_everywhere_and_the_first_token_is_the_prompts(host, inputs):
    asked = inputs[:3]
    full, half = under_own_words(host, asked, [UNCOMPRESSED, HALF], 6)
    assert full == Own(1.0, 0.0) and half.kl > 0
    ids, said = own_words(host, asked, 6)
    under = going_on(opened(host, asked, HALF), ids)
    assert torch.allclose(under[:, 0], said[:, 0], atol=1e-5), "the cache is chosen behind the prompt"
    assert half.kl == pytest.approx(compared(said, under).kl, rel=1e-5)


def test_means_weigh_every_input_alike(host, inputs, monkeypatch):
    together = under_own_words(host, inputs[:3], [HALF], 5)[0]
    monkeypatch.setattr(long_answers, "TOGETHER", 2)
    apart = under_own_words(host, inputs[:3], [HALF], 5)[0]
    assert apart.agree == pytest.approx(together.agree) and apart.kl == pytest.approx(together.kl, rel=1e-4)


def test_everything_about_a_plan_is_measured(host, inputs):
    shown = {"forms": long_answers.pages("forms", "test", 1)}
    full, half = measured(host, [UNCOMPRESSED, HALF], shown, inputs[:2], rounds=1, tokens=5)
    assert full.own == Own(1.0, 0.0) and set(half.read) == {"forms"}
    assert full.wall.kv_prefill == half.wall.kv_prefill and half.wall.kv_end < full.wall.kv_end
    assert full.wall.kv_end > full.wall.kv_prefill and half.wall.token > 0
    assert measured(host, [HALF], shown, inputs[:1], rounds=0, tokens=3)[0].wall is None


def test_the_page_has_a_line_for_each_plan_and_what_it_was_measured_on():
    read = {"tables": Grade(0.9, 0.95, 70.0), "forms": Grade(0.7, 0.75, 44.0)}
    less = {"tables": Grade(0.5, 0.6, 68.0), "forms": Grade(0.25, 0.4, 41.0)}
    full = Found(UNCOMPRESSED, read, Own(1.0, 0.0), Wall(1.0, 1.0, 4096.0, 8192.0))
    half = Found(HALF, less, Own(0.75, 0.1234), Wall(1.0, 0.9, 4096.0, 6144.0))
    page = markdown([full, half], HEADER)
    assert all(said in page for said in ("python -m it", "a box", "seed 7, split test", "torch 9", "0123456789ab"))
    assert "uncompressed: tables 70, forms 44." in page and "medians of 5 rounds" in page
    assert "| none | 80.0 | 85.0 | 90 | 70 | 100.0 | 0.000 | 4.0 | 8.0 (1.00) | 1.00 |" in page
    assert "| decode:random@0.5 | 37.5 | 50.0 | 50 | 25 | 75.0 | 0.123 | 4.0 | 6.0 (0.75) | 0.90 |" in page
    untimed = markdown([Found(UNCOMPRESSED, read, Own(1.0, 0.0), None)], HEADER | {"rounds": 0})
    assert "| 100.0 | 0.000 | - | - | - |" in untimed and "not measured" in untimed
    assert half.entry()["mean_right"] == 0.375 and half.entry()["wall"]["kv_end"] == 6144.0


def test_the_command_writes_a_page_and_its_entries(tmp_path, capsys):
    out = tmp_path / "runs" / "long.md"
    argv = ["--methods", "look_m,video_xl2", "--ratios", "0.25", "--pages", "1", "--read", "tables", "--n", "1"]
    assert main([*argv, "--written", "reading", "--rounds", "0", "--tokens", "64", "--out", str(out)]) == 0
    said, entries = capsys.readouterr().out, json.loads(out.with_suffix(".json").read_text())
    assert out.read_text() in said and "not run: decode:video_xl2" in said and entries["refused"]
    assert {"seed", "versions", "machine", "fingerprint", "tokens"} <= set(entries)
    none, kept = entries["plans"]
    assert (none["plan"], kept["plan"]) == ("none", "decode:look_m@0.25")
    assert none["read"]["tables"]["tokens"] >= 64 and none["mean_right"] > kept["mean_right"]
    assert none["own_words"] == {"agree": 1.0, "kl": 0.0} and kept["own_words"]["kl"] > 0.01


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--pages", "0"], "at least 1"),
        (["--tokens", "1"], "at least 2"),
        (["--stages", "decod"], "'decod' is not one of input"),
        (["--methods", "fastv"], "'fastv' is not one of"),
        (["--ratios", "0.5,2"], "--ratios"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(argv, words, monkeypatch, capsys):
    monkeypatch.setattr(long_answers, "load_host", lambda *args: pytest.fail("loaded"))
    with pytest.raises(SystemExit):
        main(argv)
    assert words in capsys.readouterr().err


def test_an_unknown_regime_is_named():
    with pytest.raises(ValueError, match="'formz' is unknown"):
        main(["--written", "formz"])
