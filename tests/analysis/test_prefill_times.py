"""The script that times prefills, on a tiny model and the CPU: that it runs and counts, not how fast."""

from __future__ import annotations

import json

import pytest

from foveate.analysis.prefill_times import METHODS, TOKENS, build, config_of, main, measure, page, plans, realised


@pytest.fixture(scope="module")
def host():
    import torch

    return build("tiny", torch.float32, "cpu", 0)


def test_one_run_holds_the_uncompressed_pass_and_every_method_at_every_count():
    assert len(plans()) == 1 + len(METHODS) * len(TOKENS)
    assert plans()[0][0] == "uncompressed" and plans()[1][1].label().startswith("outside:visionzip@0.333")


def test_the_same_seed_builds_the_same_weights(host):
    import torch

    assert build("tiny", torch.float32, "cpu", 0).fingerprint == host.fingerprint
    assert build("tiny", torch.float32, "cpu", 1).fingerprint != host.fingerprint


def test_the_small_model_has_twelve_layers_of_width_1024_behind_the_published_tower():
    small, whole = config_of("small"), config_of("random weights")
    text, vision = small.text_config, small.vision_config
    assert (text.num_hidden_layers, text.hidden_size, small.image_seq_length) == (12, 1024, 576)
    assert vision.to_dict() == whole.vision_config.to_dict() and vision.num_hidden_layers == 24
    assert whole.text_config.hidden_size == 4096 and whole.text_config.num_hidden_layers == 32


def test_what_is_realised_is_the_saved_time_over_the_saved_flops():
    full = {"prefill_flops": 100, "flops": 200, "prefill_share": 1.0, "whole_share": 1.0}
    less = {"prefill_flops": 50, "flops": 150, "prefill_share": 0.6, "whole_share": 0.9}
    assert realised(less, full) == pytest.approx({"prefill_realised": 0.8, "whole_realised": 0.4})
    assert realised(full, full) == {"prefill_realised": None, "whole_realised": None}


def test_a_page_says_which_plans_reach_the_bar():
    rest = {"tokens": 9, "prefill_ms": 3.0, "before_ms": 2.0, "prefill_share": 0.5, "whole_share": 0.75}
    rest |= {"prefill_flops": 50, "flops": 150, "whole_realised": 0.5}
    entries = [
        rest | {"plan": plan, "prefill_realised": saved} for plan, saved in (("a", None), ("b", 0.8), ("c", 0.79))
    ]
    about = {"command": "python -m it --seed 3", "model": "toy", "device": "a box", "threads": 2, "seed": 3}
    about |= {"versions": {"torch": "9"}, "dtype": "float32", "text": 4, "batch": 1, "warm_up": 0, "repeats": 2}
    text = page(about | {"entries": entries})
    assert "The bar is 0.8 of the prefill. Reach it: b. Do not: c." in text
    assert "python -m it --seed 3" in text and "a box, 2 threads; torch 9; seed 3" in text
    assert "| b | 9 | 3.00 | 50 % | 100 % | 0.80 | 2.00 | 75 % | 100 % | 0.50 | - |" in text
    assert "| a | 9 | 3.00 | 50 % | 100 % | - | 2.00 |" in text


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
    assert capsys.readouterr().out == out.with_suffix(".md").read_text()
    assert out.with_suffix(".md").read_text().count("\n|") == len(entries) + 2


def test_other_methods_at_other_counts_are_measured_with_what_they_realise(tmp_path):
    out, methods = tmp_path / "bar.json", "prefill:fastv,prefill:pact,prefill:topv"
    argv = ["--tiny", "--device", "cpu", "--dtype", "float32", "--warm-up", "0", "--repeats", "1", "--out", str(out)]
    main([*argv, "--methods", methods, "--tokens", "144"])
    full, *entries = json.loads(out.read_text())["entries"]
    assert [entry["plan"] for entry in entries] == ["fastv 144", "pact 144", "topv 144"]
    assert full["prefill_realised"] is None and full["prefill_share"] == 1
    for entry in entries:
        promised = 1 - entry["prefill_flops"] / full["prefill_flops"]
        assert entry["tokens"] == 9 and 0 < promised < 1
        assert entry["prefill_share"] == pytest.approx(entry["prefill_ms"] / full["prefill_ms"])
        assert entry["prefill_realised"] == pytest.approx((1 - entry["prefill_share"]) / promised)


def test_what_cannot_be_measured_is_refused(host, capsys):
    with pytest.raises(ValueError, match="--text 1: the prompt alone has"):
        measure(host, text=1, batch=1, warm_up=0, repeats=1, seed=0)
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err
    for argv in (["--methods", "prefill:fastw"], ["--methods", "fastv"], ["--tokens", "600"], ["--tiny", "--small"]):
        with pytest.raises(SystemExit):
            main(argv)
        assert argv[1].split(":")[0] in capsys.readouterr().err


def test_a_machine_without_the_device_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err
