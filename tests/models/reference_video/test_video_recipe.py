"""The video model: its shape, what it is shown, its training, and its name."""

import functools
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.models import load_host
from foveate.models.embedded import EMBEDDED, embedded
from foveate.models.errors import UnsupportedModel
from foveate.models.reference.architecture import build, build_text_tower, encode
from foveate.models.reference.batches import drawn, normalised
from foveate.models.reference.evaluate import answered
from foveate.models.reference.objectives import Learner, seen
from foveate.models.reference.processor import SIZE, build_tokenizer, vocabulary
from foveate.models.reference_video import evaluate
from foveate.models.reference_video.architecture import (
    PIXELS,
    PLACES,
    adopt,
    fresh,
    processor,
    shrunk,
    tokenizer,
    words,
)
from foveate.models.reference_video.batches import (
    KINDS,
    REGIMES,
    Steps,
    batches,
    coarse,
    collate,
    dense_labels,
    kind_of,
    pixels_of,
    small,
)
from foveate.models.reference_video.thinning import thinned
from foveate.models.reference_video.train import Settings, VideoRun
from foveate.tasks.base import DENSE_WHAT
from foveate.tasks.questions import FILM_WORDINGS, WORDINGS
from foveate.tasks.registry import TASKS, regime_sample


@pytest.fixture(scope="module")
def words_of():
    return tokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return fresh().eval()


def settings(out, **changes):
    few = {"video": 2, "batch": 2, "workers": 0, "save_every": 1, "check_every": 99, "check": 1, "threads": 1}
    return Settings(out=out, device="cpu", **{**few, **changes})


class TestWords:
    def test_the_words_of_pictures_keep_their_ids(self):
        assert len(vocabulary(words())) == SIZE
        spare = {token for token in vocabulary() if token.startswith("<spare")}
        assert all(vocabulary(words())[token] == n for token, n in vocabulary().items() if token not in spare)

    def test_questions_about_videos_have_no_word_that_is_spelled(self, words_of):
        names = dict.fromkeys(("colour", "colour2"), "red") | dict.fromkeys(("shape", "shape2"), "star")
        names |= {"way": "left", "when": "first", "verb": "come", "number": "3", "page": "2", "which": "last"}
        for wordings in FILM_WORDINGS.values():
            for wording in wordings:
                found = words_of.tokenize(wording.format(**names))
                assert not any(token.startswith("##") or token == "<unk>" for token in found), wording

    def test_answers_are_words_or_spelled_never_unknown(self, words_of):
        for regime in TASKS["video"].regimes:
            for turn in regime_sample(regime, "test", 0).turns:
                assert words_of.unk_token_id not in words_of(turn.answers[0] + turn.question).input_ids

    def test_more_words_than_ids_are_refused(self):
        with pytest.raises(ValueError, match="there are 256 ids"):
            vocabulary([f"word{n}x" for n in range(60)])
        assert set(WORDINGS) & set(FILM_WORDINGS) == set()


class TestShape:
    def test_a_frame_has_36_tokens_and_a_video_288(self, model):
        sample = regime_sample("order", "test", 0)
        patches, cls = seen(model, pixels_of([sample, sample]))
        assert patches.shape == (2, 288, 96) and cls.shape == (2, 96)
        alone, _ = encode(model.model.vision_tower, pixels_of([sample])[0, 3:4])
        torch.testing.assert_close(patches[0, 3 * 36 : 4 * 36], alone[0, 1:], atol=1e-5, rtol=1e-4)

    def test_pixels_are_those_of_the_processor(self):
        sample = regime_sample("slides", "test", 0)
        made = processor().image_processor(list(sample.clip.frames), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(made, pixels_of([sample])[0], atol=1e-5, rtol=0)
        assert small(sample.image[None]).shape == (1, PIXELS, PIXELS, 3)

    def test_places_are_means_of_the_four_that_they_cover(self):
        places = torch.arange(145.0)[:, None]
        found = shrunk(places)
        assert found.shape == (37, 1) and found[0] == 0
        assert found[1] == (1 + 2 + 13 + 14) / 4 and found[36] == (131 + 132 + 143 + 144) / 4

    def test_adopting_keeps_every_weight_but_the_places(self):
        learner = Learner(build(build_tokenizer()), build_text_tower(build_tokenizer()))
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        after = adopt(learner).state_dict()
        assert set(before) == set(after)
        changed = [
            name
            for name, value in after.items()
            if not torch.equal(value, before.get(name))
            if value.shape == before[name].shape
        ] + [n for n in after if after[n].shape != before[n].shape]
        assert changed == [f"model.{PLACES}"]
        half = Learner(build(build_tokenizer(), 4), build_text_tower(build_tokenizer()))
        with pytest.raises(ValueError, match="4 decoder layers, needs 8"):
            adopt(half)


class TestBatches:
    def test_labels_of_larger_cells_are_what_most_carry(self):
        dense = np.zeros((1, 4, 4, 2), np.int16)
        dense[0, :2, :2] = [[[3, 1], [3, 1]], [[0, 0], [5, 2]]]
        dense[0, 0, 2] = [7, 4]  # one of four: not enough
        found = coarse(dense)
        assert found[0, 0, 0].tolist() == [3, 1] and found[0, 0, 1].tolist() == [0, 0]

    def test_labels_and_looks_follow_the_things(self, words_of):
        rows = [drawn(regime_sample("motion", "host-train", i), words_of) for i in range(4)]
        batch = collate(rows)
        assert batch.pixels.shape == (4, 8, 3, 48, 48) and batch.dense.shape == (4, 288, 4, 2)
        for b, (sample, _, _) in enumerate(rows):
            answer = (batch.target[b] != -100).nonzero()[0, 0]
            for entry, frame in ((0, 0), (1, 7)):  # where the thing is at first, where at last
                look = batch.looks[b, answer, entry, 1:].reshape(8, 36)
                assert look.sum() == pytest.approx(1) and look[frame].sum() == pytest.approx(1)
                best = frame * 36 + int(look[frame].argmax())
                shape = DENSE_WHAT[int(batch.dense[b, best, :, 0].max())]
                named = [s for s in ("circle", "square", "triangle", "star", "cross", "heart") if s in sample.caption]
                assert shape in named
        assert (dense_labels(regime_sample("single", "test", 0)) >= 0).all()

    def test_who_counts_looks_at_each_time_and_at_the_start_token(self, words_of):
        for index in range(6):
            sample = regime_sample("times", "host-train", index)
            batch = collate([drawn(sample, words_of)])
            turn = sample.turns[0]
            if turn.template.startswith("count"):
                first = (batch.target[0] != -100).nonzero()[0, 0]
                assert batch.looks[0, first, 2, 0] == pytest.approx(1 / (int(turn.answers[0]) + 1))

    def test_every_kind_of_step_comes_and_holds_alike_frames(self, words_of):
        kinds = [kind_of(0, step) for step in range(200)]
        assert set(kinds) == set(KINDS) and 100 < kinds.count("videos") < 140
        sizes = {kinds[step]: keys for step, keys in enumerate(Steps(0, 0, 60, 4))}
        assert {kind: len(keys) for kind, keys in sizes.items()} == {
            "videos": 4,
            "long": 2,
            "longer": 1,
            "longest": 1,
            "pictures": 16,
        }
        assert all(regime in TASKS["video"].regimes for regime in REGIMES["videos"])

    def test_a_resumed_stream_draws_what_was_due(self, words_of):
        whole = list(batches(words_of, seed=0, start=0, steps=3, size=1, workers=0))
        (rest,) = batches(words_of, seed=0, start=2, steps=3, size=1, workers=0)
        assert torch.equal(whole[2].pixels, rest.pixels) and torch.equal(whole[2].text, rest.text)


class TestThinned:
    def test_a_batch_shown_whole_is_the_batch_and_its_looks_follow_the_tokens(self, words_of):
        batch = collate([drawn(regime_sample("motion", "host-train", i), words_of) for i in range(3)])
        whole = batch.shown(torch.arange(288).expand(3, -1))
        assert torch.allclose(whole.looks, batch.looks, atol=1e-6)
        late = batch.shown(torch.arange(36, 288).expand(3, -1))  # the first frame is left out
        assert late.looks.shape[-1] == 1 + 252 and torch.allclose(
            late.looks[..., 1:].sum(-1).round(), late.looks.sum(-1)
        )
        known = (batch.target != -100) & (batch.looks[:, :, 0].sum(-1) > 0.5)
        assert (late.looks[:, :, 0].sum(-1)[known] == 0).all()  # where a thing was at first
        assert late.looks[:, :, 1].sum(-1)[known].numpy() == pytest.approx(1)  # where at last

    def test_the_decoder_reads_what_is_shown_as_it_does_behind_a_mask(self, model, words_of):
        learner = Learner(model, build_text_tower(words_of)).eval()
        batch = collate([drawn(regime_sample("times", "host-train", i), words_of) for i in range(2)])
        some = batch.shown(torch.arange(0, 288, 2).expand(2, -1))
        hook = functools.partial(masked, hidden=torch.arange(1, 288, 2) + 1)
        with torch.no_grad():
            patches, _ = seen(model, batch.pixels)
            shorter, _ = learner.answer_logits(patches, some)
            handle = model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
            longer, _ = learner.answer_logits(patches, batch)
            handle.remove()
        torch.testing.assert_close(shorter, longer, atol=1e-4, rtol=1e-4)

    def test_three_quarters_of_the_steps_with_videos_are_thinned_and_none_with_pictures(self, model, words_of):
        film = collate([drawn(regime_sample("idle", "host-train", 0), words_of)])
        picture = collate([drawn(regime_sample("single", "host-train", 0), words_of)])
        kept = [thinned(film, model, 0, step).kept for step in range(60)]
        shares = [1 if some is None else some.shape[1] / 288 for some in kept]
        assert 6 < shares.count(1) < 24 and 0.14 < min(shares) < 0.3
        assert all(same(thinned(film, model, 0, step).kept, kept[step]) for step in range(12))
        assert all(thinned(picture, model, 0, step).kept is None for step in range(10))


def same(a, b):
    """Whether two batches show the same tokens; None = all."""
    return a is b if a is None or b is None else torch.equal(a, b)


def masked(module, args, kwargs, hidden):
    """Hides some rows of the sequence from all others."""
    mask = kwargs["attention_mask"].clone()
    mask[..., hidden] = False
    mask[..., hidden, hidden] = True
    return args, kwargs | {"attention_mask": mask}


class TestRun:
    def test_losses_fall_on_a_batch_that_comes_again(self, tmp_path, words_of):
        run = VideoRun(settings(tmp_path))
        batch = collate([drawn(regime_sample("motion", "host-train", i), words_of) for i in range(3)])
        losses = [sum(run.update(batch, 0.5).values()) for _ in range(6)]
        assert losses[-1] < 0.9 * losses[0]

    def test_a_killed_run_goes_on_with_the_same_numbers_and_ships(self, tmp_path, monkeypatch):
        whole = VideoRun(settings(tmp_path / "whole"))
        whole.train_stage()
        part = VideoRun(settings(tmp_path / "part", video=1))
        part.train_stage()
        again = VideoRun(settings(tmp_path / "part"))
        assert again.step == 1
        again.train_stage()
        for name, value in whole.module.state_dict().items():
            torch.testing.assert_close(again.module.state_dict()[name], value, msg=name)
        lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
        assert set(lines[-1]["accuracy"]) == set(TASKS["video"].regimes)
        monkeypatch.setattr(VideoRun, "weights", tmp_path / "package" / "weights")
        (tmp_path / "package").mkdir()
        again.ship()
        assert (tmp_path / "package" / "training.jsonl").is_file()
        more = VideoRun(settings(tmp_path / "more", start="package", video=3))
        assert (more.step, more.warm_from) == (2, 2)
        for name, value in again.module.state_dict().items():
            torch.testing.assert_close(more.module.state_dict()[name], value, rtol=0.01, atol=0.01, msg=name)
        self.answers_as_huggingface_does(again, tmp_path / "package" / "weights", monkeypatch)

    def answers_as_huggingface_does(self, run, folder, monkeypatch):
        """What was shipped loads by name, as a model of its own class, and a host answers videos as it does."""
        monkeypatch.setitem(EMBEDDED, "reference-video", folder)
        plain, ready = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        host, sample = load_host("reference-video"), regime_sample("order", "test", 1)
        turn = sample.turns[0]
        opened = host.open([sample.shown], [turn.question])
        assert host.grid == (1, 6, 6) and opened.shapes[0].grids == ((8, 6, 6),)
        said = opened.decode(max_new_tokens=4)[0]
        prompt = "<image>" * 8 + turn.question + "<answer>"
        given = ready(images=list(sample.clip.frames), text=prompt, return_tensors="pt")
        assert int((given["input_ids"] == plain.config.image_token_index).sum()) == 288
        with torch.no_grad():
            out = plain.float().generate(**given, do_sample=False, max_new_tokens=4)
        assert said == ready.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        hit = answered(plain.eval(), ready.tokenizer, [sample], pixels_of([sample]))[0][0]
        assert hit == (said == turn.answers[0])


class TestEvaluate:
    def test_one_frame_is_the_middle_one_without_the_others(self, model, words_of):
        sample = regime_sample("idle", "test", 0)
        one = pixels_of([sample], one=True)
        torch.testing.assert_close(one, normalised(small(sample.clip.frames[4:5]))[None])
        assert pixels_of([regime_sample("single", "test", 0)]).shape == (1, 1, 3, 48, 48)

    def test_the_table_has_every_regime(self, model, words_of):
        found = evaluate.measure(model, words_of, "test", 1, long=0)
        assert set(found["accuracy"]) == {*TASKS["video"].regimes, *REGIMES["pictures"]}
        assert set(found["one_frame"]) == set(TASKS["video"].regimes) and found["long"] == {}
        assert set(evaluate.APART) < set(found["one_frame"])
        assert all(0 <= share <= 1 for share in found["accuracy"].values())

    def test_a_folder_without_a_model_is_named(self, tmp_path):
        with pytest.raises(SystemExit, match=f"no model in {tmp_path}"):
            evaluate.main(["--model", str(tmp_path)])


def test_the_name_without_weights_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "reference-video", tmp_path / "reference_video" / "weights")
    with pytest.raises(UnsupportedModel, match=r"no weights in .*: python -m foveate.models.reference_video.train$"):
        load_host("reference-video")
    assert embedded("reference").name == "weights" and embedded("elsewhere") is None
