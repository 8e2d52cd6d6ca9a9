"""The recipe of the reference model on a few steps: tokens, packing, losses, growth, resume."""

import numpy as np
import pytest
import torch

from foveate.models.reference.architecture import DECODER_LAYERS, build, encode, grow
from foveate.models.reference.batches import Steps, batches, collate, normalised, pack
from foveate.models.reference.evaluate import right
from foveate.models.reference.muon import Muon, orthogonalise
from foveate.models.reference.objectives import turn_mask
from foveate.models.reference.processor import SIZE, build_processor, build_tokenizer, tokens_per_image, vocabulary
from foveate.models.reference.train import LAYERS, Run, Settings, rate
from foveate.tasks.base import exact_match
from foveate.tasks.registry import regime_sample

REGIMES = {"single": 1.0, "reading": 1.0, "tables": 1.0}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return build(tokenizer, DECODER_LAYERS // 2).eval()


def rows(tokenizer, count, regime="tables"):
    samples = [regime_sample(regime, "host-train", i) for i in range(count)]
    return [(s, pack(s, tokenizer), tokenizer(s.caption).input_ids[:32]) for s in samples]


@pytest.mark.fast
class TestTokens:
    def test_words_of_questions_are_whole_and_everything_else_is_spelled(self, tokenizer):
        assert tokenizer.tokenize("what colour is zoe?") == ["what", "colour", "is", "z", "##o", "##e", "?"]
        assert tokenizer.tokenize("304") == ["3", "##0", "##4"]

    @pytest.mark.parametrize("answer", ["304", "red", "zoe", "tea", "yes", "0"])
    def test_answers_come_back_from_their_tokens(self, tokenizer, answer):
        tokens = tokenizer(answer, add_special_tokens=False).input_ids
        assert exact_match(tokenizer.decode(tokens), [answer])

    def test_the_vocabulary_keeps_its_size_and_the_end_token_is_not_two(self, tokenizer):
        assert len(vocabulary()) == SIZE == len(tokenizer)
        assert tokenizer.eos_token_id != 2  # CLIP text models treat 2 as a legacy case

    def test_the_processor_puts_one_token_a_patch_and_normalises_as_training_does(self):
        processor = build_processor()
        image = regime_sample("single", "test", 0).image
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is shown?"}]}]
        text = processor.apply_chat_template(message)
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        ids = inputs["input_ids"][0]
        assert int((ids == processor.tokenizer.convert_tokens_to_ids("<image>")).sum()) == tokens_per_image()
        assert ids[0] == processor.tokenizer.bos_token_id
        assert ids[-1] == processor.tokenizer.convert_tokens_to_ids("<answer>")
        torch.testing.assert_close(inputs["pixel_values"], normalised(image[None]), atol=1e-5, rtol=0)


class TestPacking:
    def test_a_packed_turn_is_answered_as_if_it_stood_alone(self, model, tokenizer):
        sample = regime_sample("tables", "host-train", 3)
        hits = right(model, tokenizer, [sample], blind=False)[0]
        packed = pack(sample, tokenizer)
        feature, _ = encode(model.model.vision_tower, normalised(sample.image[None]))
        picture = model.model.multi_modal_projector(feature[:, 1:])
        embed = model.model.language_model.embed_tokens
        with torch.no_grad():
            for turn in range(len(hits)):
                mine = packed[:, packed[1] == turn]
                ids = torch.tensor([tokenizer.bos_token_id, *mine[0]])
                words = embed(ids)[None]
                alone = model.model.language_model(inputs_embeds=torch.cat([words[:, :1], picture, words[:, 1:]], 1))
                said = model.lm_head(alone.last_hidden_state)[0, -mine.shape[1] :].argmax(-1).numpy()
                assert hits[turn] == bool(((said == mine[3]) | (mine[3] == -100)).all())

    def test_a_turn_sees_the_picture_and_its_own_past_only(self):
        mask = turn_mask(torch.tensor([[0, 0, 1, -1]]), prefix=2)[0, 0]
        assert mask.int().tolist() == [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ]

    def test_targets_are_the_answer_and_the_end_token(self, tokenizer):
        sample = regime_sample("single", "host-train", 0)
        packed = pack(sample, tokenizer)
        first = packed[3][(packed[1] == 0) & (packed[3] != -100)]
        want = tokenizer(sample.turns[0].answers[0], add_special_tokens=False).input_ids
        assert first.tolist() == [*want, tokenizer.eos_token_id]

    def test_a_resumed_stream_draws_the_pictures_that_were_due(self, tokenizer):
        whole = list(batches(REGIMES, tokenizer, seed=0, start=0, steps=3, size=2, workers=0))
        rest = list(batches(REGIMES, tokenizer, seed=0, start=2, steps=3, size=2, workers=0))
        assert len(Steps(2, 3, 2)) == len(rest) == 1
        assert torch.equal(whole[2].pixels, rest[0].pixels) and torch.equal(whole[2].text, rest[0].text)


class TestGrowth:
    def test_a_grown_model_says_what_the_small_one_says(self, model, tokenizer):
        big = grow(model, tokenizer).eval()
        ids = torch.arange(6, 40)[None]
        with torch.no_grad():
            torch.testing.assert_close(big(input_ids=ids).logits, model(input_ids=ids).logits)
        assert big.config.text_config.num_hidden_layers == DECODER_LAYERS

    def test_only_half_depth_can_grow(self, tokenizer):
        with pytest.raises(ValueError, match="8 decoder layers, needs 4"):
            grow(build(tokenizer), tokenizer)


@pytest.mark.fast
class TestMuon:
    def test_singular_values_come_near_one(self):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(0))))
        assert 0.6 < values.min() and values.max() < 1.3

    def test_one_step_agrees_with_torch_up_to_its_bfloat16(self):
        torch.manual_seed(0)
        start, gradient = torch.randn(16, 12), torch.randn(16, 12)
        ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        Muon([ours], lr=1e-2).step()
        torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw").step()
        moved = (theirs - start).norm()
        assert (ours - theirs).norm() < 0.05 * moved


class TestRun:
    def settings(self, out, **changes):
        small = {"see": 2, "small": 2, "full": 2, "batch": 2, "workers": 0, "save_every": 1, "check_every": 99}
        return Settings(out=out, device="cpu", **{**small, **changes})

    def test_losses_fall_on_a_batch_that_comes_again(self, tokenizer, tmp_path):
        run = Run(self.settings(tmp_path))
        run.stage = "small"
        batch = collate(rows(tokenizer, 4))
        losses = [sum(run.update(batch, 1.0).values()) for _ in range(8)]
        assert losses[-1] < 0.8 * losses[0]

    def test_a_killed_run_goes_on_with_the_same_numbers(self, tmp_path):
        whole = Run(self.settings(tmp_path / "whole"))
        whole.train_stage()
        part = Run(self.settings(tmp_path / "part", see=1))
        part.train_stage()
        again = Run(self.settings(tmp_path / "part"))
        assert again.step == 1
        again.train_stage()
        for name, value in whole.module.state_dict().items():
            torch.testing.assert_close(again.module.state_dict()[name], value, msg=name)

    def test_the_decoder_grows_between_stages(self, tmp_path):
        run = Run(self.settings(tmp_path))
        assert run.module.model.config.text_config.num_hidden_layers == LAYERS["see"]
        assert run.next_stage() and run.next_stage() and not run.next_stage()
        assert run.module.model.config.text_config.num_hidden_layers == DECODER_LAYERS

    def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(self, tokenizer, tmp_path):
        run = Run(self.settings(tmp_path))
        batch = collate(rows(tokenizer, 2))
        batch.pixels[0] = float("nan")
        before = {name: value.clone() for name, value in run.module.state_dict().items()}
        with pytest.raises(FloatingPointError, match="stage see, step 0"):
            run.update(batch, 1.0)
        assert all(torch.equal(value, before[name]) for name, value in run.module.state_dict().items())


@pytest.mark.fast
def test_the_rate_rises_stays_and_falls():
    assert rate(0, 1000) == pytest.approx(0.01) and rate(500, 1000) == 1.0
    assert rate(800, 1000) == pytest.approx(0.5) and rate(999, 1000) == pytest.approx(0.05)
    assert rate(999, 1000, fall=0.0) == 1.0


@pytest.mark.fast
def test_dense_labels_follow_the_patches(tokenizer):
    from foveate.models.reference.batches import dense_labels

    sample = regime_sample("single", "host-train", 1)
    labels = dense_labels(sample)
    assert labels.shape == (144, 4, 2)
    cells = np.argwhere(sample.dense[..., 0] > 0)
    row, column = cells[0]
    assert labels[(row // 2) * 12 + column // 2, (row % 2) * 2 + column % 2, 0] == sample.dense[row, column, 0]


class TestShipping:
    def test_what_was_exported_says_the_same_and_trains_on(self, tmp_path, tokenizer):
        from foveate.models.reference.shipping import export, restore

        run = Run(Settings(out=tmp_path / "run", see=0, small=1, full=0, batch=2, workers=0, device="cpu"))
        run.module.to(torch.bfloat16).float()  # the folder holds bfloat16
        run.stage = "small"
        export(run.module, tmp_path / "weights", {"stage": "small", "step": 7, "seconds": 1})
        again, about = restore(tmp_path / "weights", LAYERS)
        assert about["step"] == 7
        for name, value in run.module.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, msg=name)

    def test_an_empty_folder_is_named(self, tmp_path):
        from foveate.models.reference.shipping import restore

        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            restore(tmp_path, LAYERS)

    def test_a_start_without_optimiser_state_warms_up_again(self):
        assert rate(500, 1000, start=500) == pytest.approx(0.01)
