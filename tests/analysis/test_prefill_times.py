"""The script that times prefills, on a tiny model and the CPU: that it runs and counts, not how fast."""

from __future__ import annotations

import json

import pytest

from foveate.analysis.prefill_times import METHODS, TOKENS, build, main, measure, plans


@pytest.fixture(scope="module")
def host():
    import torch

    return build(tiny=True, dtype=torch.float32, device="cpu", seed=0)


def test_one_run_holds_the_uncompressed_pass_and_every_method_at_every_count():
    assert len(plans()) == 1 + len(METHODS) * len(TOKENS)
    assert plans()[0][0] == "uncompressed" and plans()[1][1].label().startswith("outside:visionzip@0.333")


def test_the_same_seed_builds_the_same_weights(host):
    import torch

    assert build(True, torch.float32, "cpu", 0).fingerprint == host.fingerprint
    assert build(True, torch.float32, "cpu", 1).fingerprint != host.fingerprint


def test_the_command_writes_medians_with_what_they_were_measured_on(tmp_path, capsys):
    out = tmp_path / "runs" / "times.json"
    main(["--tiny", "--device", "cpu", "--dtype", "float32", "--warm-up", "0", "--repeats", "2", "--out", str(out)])
    found = json.loads(out.read_text())
    assert {"device", "versions", "seed", "dtype", "text", "batch", "warm_up", "repeats"} <= set(found)
    entries = found["entries"]
    assert [entry["plan"] for entry in entries] == [name for name, _ in plans()]
    assert [entry["tokens"] for entry in entries[:4]] == [36, 12, 8, 4]  # the shares of 576, 192, 128 and 64
    for entry in entries:
        low, high = entry["prefill_ms_range"]
        assert 0 < low <= entry["prefill_ms"] <= high and entry["before_ms"] > 0
    assert all(entry["flops"] < entries[0]["flops"] for entry in entries[1:])
    assert capsys.readouterr().out.count("\n|") == len(entries) + 2


def test_what_cannot_be_measured_is_refused(host, capsys):
    with pytest.raises(ValueError, match="--text 1: the prompt alone has"):
        measure(host, text=1, batch=1, warm_up=0, repeats=1, seed=0)
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_a_machine_without_the_device_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err
