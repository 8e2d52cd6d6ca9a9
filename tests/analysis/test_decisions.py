"""What deciding costs: every stage is decided, every part is timed, and the verdict follows the shares."""

import pytest

from foveate.analysis.decisions import PARTS, Timed, lines, main, measure, random_controller
from foveate.models import load_host
from foveate.plans.portfolio import Portfolio


@pytest.fixture(scope="module")
def reference():
    return load_host("reference")


@pytest.fixture(scope="module")
def untrained(reference):
    return random_controller(reference, Portfolio.from_yaml("default"))


@pytest.mark.parametrize("max_flops", [None, 1e15])
def test_every_part_of_every_round_is_timed(reference, untrained, max_flops):
    timed = measure(reference, untrained, 2, max_flops)
    assert len(timed.full) == len(timed.gate) == 2, "the first of three does not count"
    assert all(len(timed.parts[part]) == 2 and min(timed.parts[part]) > 0 for part in PARTS)
    assert max(timed.gate) < min(timed.full), "deciding is cheaper than answering"


def test_a_controller_of_whole_plans_looks_at_no_tokens(reference):
    whole = random_controller(reference, Portfolio.from_yaml("one_stage"), "regression")
    timed = measure(reference, whole, 1)
    assert [part for part in PARTS if not timed.parts[part][0]] == ["block1", "encoder", "layer1"]
    assert 0 < max(timed.gate) < min(timed.full)


def test_a_walk_that_compresses_is_no_measurement(reference, untrained, monkeypatch):
    monkeypatch.setattr("foveate.analysis.decisions.never", lambda network: network)  # it chooses as it likes
    with pytest.raises(RuntimeError, match="not every stage was decided"):
        measure(reference, untrained, 1)


def test_shares_are_ratios_of_medians_and_the_verdict_follows():
    timed = Timed(full=[1.0, 2.0, 9.0], gate=[0.1, 0.3, 0.2], parts={part: [0.1, 0.1, 0.4] for part in PARTS})
    assert timed.share(timed.gate) == pytest.approx(0.1)
    head, gate, *parts = lines("a model", timed, 0.05)
    assert head == "a model: 3 rounds; all decisions are above 5.0% of the uncompressed pass"
    assert gate.split() == ["all", "decisions", "10.000%"]
    assert [line.split() for line in parts] == [[part, "5.000%"] for part in PARTS]
    assert "within 10.0%" in lines("a model", timed, 0.1)[0]


def test_rounds_below_one_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    assert "--rounds 0" in capsys.readouterr().err
