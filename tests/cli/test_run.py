"""`foveate run`: the answer, its plan and its cost; and every kind of bad input as one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from filming import write_film
from PIL import Image

from foveate.controller import save
from foveate.plans.plan import Plan
from foveate.tasks.video import frames

ZIP = Plan.of(outside=("visionzip", 0.25))


@pytest.fixture
def asked(folder, photo):
    """Arguments of a call that is right so far."""
    return ["--image", photo, "--question", "what is this ?", "--model", folder, "--max-new-tokens", 4]


class TestAnswers:
    def test_a_controller_answers_with_its_plan_and_the_ledger(self, call, asked, controller, host, photo):
        found = json.loads(call("run", *asked, "--controller", controller, "--budget", 0.4, "--json").out)
        p = host.open([np.asarray(Image.open(photo).convert("RGB"))], ["what is this ?"]).run(ZIP)
        assert [found["answer"]] == p.decode(max_new_tokens=4)
        assert (found["label"], found["reason"], found["plan"]) == (ZIP.label(), "policy", ZIP.to_dict())
        assert found["tokens"] == {"input": 16, "encoder": 16, "outside": 4, "projector": 4, "prefill": 4, "decode": 4}
        stages = found["flops"]["by_stage"]
        assert {stage: stages[stage] for stage in p.ledger[0].by_stage()} == p.ledger[0].by_stage()
        decided = stages["features"] + stages["controller"]
        assert found["flops"]["total"] == p.ledger[0].total + decided == sum(stages.values())
        assert found["decision_share"] == decided / found["flops"]["uncompressed"]
        assert found["share"] == found["flops"]["total"] / found["flops"]["uncompressed"]

    def test_a_plan_needs_no_controller(self, call, asked):
        whole = json.loads(call("run", *asked, "--plan", "none", "--json").out)
        assert (whole["share"], whole["decision_share"], whole["label"]) == (1.0, 0.0, "none")
        less = json.loads(call("run", *asked, "--plan", "outside:visionzip@0.25 + prefill:fastv@0.5", "--json").out)
        assert less["tokens"]["outside"] == 4 and less["tokens"]["prefill"] == 2 and less["share"] < 1
        assert json.loads(call("run", *asked, "--plan", "blind", "--json").out)["tokens"]["decode"] == 0

    def test_the_text_says_answer_plan_tokens_and_flops(self, call, asked, controller):
        got = call("run", *asked, "--controller", controller)
        lines = got.out.splitlines()
        assert got.status == 0 and [line.split()[0] for line in lines[:5]] == [
            "answer",
            "plan",
            "cost",
            "decisions",
            "tokens",
        ]
        assert "outside:visionzip@0.25  (by policy)" in lines[1]
        row = next(line.split() for line in lines if line.startswith("outside"))
        assert row[1:3] == ["visionzip@0.25", "4"]

    def test_the_kept_tokens_are_drawn(self, call, asked, controller, tmp_path):
        got = call("run", *asked, "--controller", controller, "--picture", tmp_path / "kept.png")
        assert got.status == 0 and str(tmp_path / "kept.png") in got.out
        pixels = np.asarray(Image.open(tmp_path / "kept.png"))
        marked = np.argwhere((pixels == (255, 170, 0)).all(-1))
        assert pixels.shape == (720, 540, 3), "the picture as it was given, nine times as large"
        assert len(marked) and marked[:, 0].min() >= 90 and marked[:, 0].max() < 630, "the model saw its middle"

    def test_several_pictures_are_asked_about_together_and_drawn_side_by_side(
        self, call, asked, controller, host, photo, serving, tmp_path
    ):
        second = serving.tiny.picture(5, 64, 64)
        Image.fromarray(second).save(tmp_path / "second.png")
        more = ["--image", tmp_path / "second.png", "--picture", tmp_path / "kept.png"]
        found = json.loads(call("run", *asked, *more, "--controller", controller, "--json").out)
        first = np.asarray(Image.open(photo).convert("RGB"))
        p = host.open([[first, second]], ["what is this ?"]).run(ZIP)
        assert [found["answer"]] == p.decode(max_new_tokens=4) and found["tokens"]["outside"] == 8
        assert Image.open(found["picture"]).size == (540 + 48 + 512, 720)

    def test_a_hard_limit_is_kept(self, call, asked, controller):
        full = json.loads(call("run", *asked, "--plan", "none", "--json").out)["flops"]["total"]
        limited = call("run", *asked, "--controller", controller, "--max-flops", 0.8 * full, "--json")
        assert json.loads(limited.out)["flops"]["total"] <= 0.8 * full


class TestVideos:
    @pytest.fixture
    def film(self, serving, tmp_path):
        """A file of six frames of 48 x 64 px."""
        return write_film(tmp_path / "clip.mkv", [serving.tiny.picture(seed, 48, 64) for seed in range(6)])

    @pytest.fixture
    def asked(self, folder, film):
        return ["--video", film, "--question", "what is this ?", "--model", folder, "--max-new-tokens", 4]

    def test_frames_are_answered_counted_and_drawn(self, call, asked, film, host, tmp_path):
        plan = ["--plan", "input:frames@0.5 + outside:visionzip@0.25"]
        more = [*plan, "--frames", 4, "--picture", tmp_path / "kept.png"]
        found = json.loads(call("run", *asked, *more, "--json").out)
        p = host.open([frames(film, 4)], ["what is this ?"]).run(
            Plan.of(input=("frames", 0.5), outside=("visionzip", 0.25))
        )
        assert [found["answer"]] == p.decode(max_new_tokens=4)
        assert found["tokens"] == {"input": 32, "encoder": 32, "outside": 8, "projector": 8, "prefill": 8, "decode": 8}
        assert found["flops"]["total"] == p.ledger[0].total < found["flops"]["uncompressed"]
        picture = np.asarray(Image.open(tmp_path / "kept.png"))
        assert picture.shape == (2 * 168 + 16, 2 * 224 + 16, 3), "four frames, two in a line"
        marked = (picture == (255, 170, 0)).all(-1)
        panels = [marked[y : y + 168, x : x + 224].any() for y in (0, 184) for x in (0, 240)]
        assert panels == [False, True, False, True], "the frames at an eighth and at five eighths are left out"

    def test_a_controller_for_pictures_leaves_a_video_whole(self, call, asked, controller):
        found = json.loads(call("run", *asked, "--controller", controller, "--json").out)
        assert (found["reason"], found["label"]) == ("outside", "none")
        assert found["share"] == pytest.approx(1 + found["decision_share"]) and found["decision_share"] < 0.01
        assert found["tokens"]["input"] == 6 * 16, "all frames there are, up to eight"

    def test_bad_input_is_one_line(self, call, asked, photo, tmp_path):
        assert call("run", *asked, "--plan", "none", "--frames", 0).refused("run", "--frames: 0 is below 1")
        assert call("run", *asked, "--plan", "input:frames@0.1").refused("run", "frames: count 10 is below 16")
        still = ["--image", photo, *asked[2:]]
        assert call("run", *still, "--plan", "input:frames@0.5").refused("run", "frames: is for videos")
        assert call("run", *asked[2:], "--plan", "none").refused("run", "give --image FILE or --video FILE")
        asked[1] = tmp_path / "gone.mp4"
        assert call("run", *asked, "--plan", "none").refused("run", "gone.mp4", "no such file")


class TestBadInput:
    def test_a_corrupt_image(self, call, asked, tmp_path):
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
        asked[1] = tmp_path / "bad.png"
        assert call("run", *asked, "--plan", "none").refused("run", "bad.png")

    def test_a_missing_image(self, call, asked, tmp_path):
        asked[1] = tmp_path / "gone.png"
        assert call("run", *asked, "--plan", "none").refused("run", "gone.png", "no such file")

    @pytest.mark.parametrize("question", ["", "  \n "])
    def test_an_empty_question(self, call, asked, question):
        asked[3] = question
        assert call("run", *asked, "--plan", "none").refused("run", "question", "empty")

    def test_a_question_with_the_image_token(self, call, asked):
        asked[3] = "what is <image> ?"
        assert call("run", *asked, "--plan", "none").refused("run", "question 0", "<image>")

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            ("outside:visonzip@0.5", ["visonzip", "near: visionzip"]),
            ("outside:visionzip@1.5", ["1.5", "(0, 1]"]),
            ("outside:visionzip@-1", ["-1", "(0, 1]"]),
            ("projector:average_pool@0.5 + outside:random@0.5", ["average_pool", "grid"]),
        ],
    )
    def test_an_unknown_method_and_an_impossible_ratio(self, call, asked, plan, words):
        assert call("run", *asked, "--plan", plan).refused("run", *words)

    def test_a_controller_for_another_model(self, call, asked, make_artefact, tmp_path):
        save(tmp_path / "other.fov", make_artefact(ZIP, fingerprint="cd" * 32, host="another"))
        got = call("run", *asked, "--controller", tmp_path / "other.fov")
        assert got.refused("run", "other.fov", "made for host 'another'")

    @pytest.mark.parametrize(
        ("change", "word"), [("cut", "truncated"), ("flip", "altered"), ("junk", "not a controller")]
    )
    def test_a_truncated_or_altered_controller(self, call, asked, controller, tmp_path, change, word):
        data = bytearray(controller.read_bytes())
        if change == "flip":
            data[len(data) // 2] ^= 1
        broken = {"cut": data[:-50], "flip": data, "junk": b"hello"}[change]
        (tmp_path / "broken.fov").write_bytes(broken)
        assert call("run", *asked, "--controller", tmp_path / "broken.fov").refused("run", "broken.fov", word)

    def test_a_missing_controller_and_none_at_all(self, call, asked, tmp_path):
        got = call("run", *asked, "--controller", tmp_path / "gone.fov")
        assert got.refused("run", "gone.fov")
        assert call("run", *asked).refused("run", "no controller", "--controller FILE")

    def test_a_budget_below_everything(self, call, asked, controller):
        got = call("run", *asked, "--controller", controller, "--budget", 0.01)
        assert got.refused("run", "0.01 is below the lowest calibrated mean cost 0.2")

    def test_a_model_that_is_not_there(self, call, asked, tmp_path):
        asked[5] = tmp_path / "nothing"
        assert call("run", *asked, "--plan", "none").refused("run", "nothing")

    def test_a_picture_that_cannot_be_written(self, call, asked, tmp_path):
        got = call("run", *asked, "--plan", "none", "--picture", tmp_path / "kept.xyz")
        assert (got.status, got.err.count("\n")) == (2, 1) and "kept.xyz" in got.err
