"""The weights that ship: they load as a user loads them, say what the untouched model says, and are as recorded."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.base import Selector
from foveate.compressors.signals import Signal
from foveate.models import load_host
from foveate.models.reference import WEIGHTS
from foveate.models.reference.evaluate import accuracy
from foveate.models.reference.processor import build_tokenizer, tokens_per_image
from foveate.plans.plan import UNCOMPRESSED
from foveate.tasks.registry import iter_samples, regime_sample

ALL = ("scenes", "reading", "documents", "charts", "digits", "pictures", "easy_vqa")


@pytest.fixture(scope="module")
def host():
    return load_host("reference")


@pytest.fixture(scope="module")
def untouched():
    return AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def asked():
    """200 inputs, every regime alike."""
    samples = list(iter_samples(ALL, "test", 200))
    return [(sample.image, sample.turns[0].question) for sample in samples]


def test_all_files_together_stay_under_24_mb():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 24e6


def test_the_shape_leaves_most_of_the_cost_to_the_decoder(host):
    assert host.encoder_depth >= 6 and host.decoder_depth >= 8 and host.n_visual == tokens_per_image() >= 144
    stages = host.forecast(UNCOMPRESSED, host.prompt_shape(16)).by_stage()
    assert stages["encoder"] <= 0.2 * sum(stages.values())


class TestUncompressedEqualsGenerate:
    def generated(self, untouched, image, question):
        processor = AutoProcessor.from_pretrained(WEIGHTS)
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        inputs = processor(images=[image], text=[processor.apply_chat_template(message)], return_tensors="pt")
        with torch.no_grad():
            ids = untouched.generate(**inputs, do_sample=False, max_new_tokens=8)
        return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def test_token_for_token_on_200_inputs_alone_and_in_padded_batches(self, host, untouched, asked):
        want = [self.generated(untouched, *one) for one in asked]
        batched, alone = [], []
        for first in range(0, len(asked), 25):
            images, questions = zip(*asked[first : first + 25], strict=True)
            batched += host.open(images, questions).run(UNCOMPRESSED).decode(max_new_tokens=8)
        for image, question in asked:
            alone += host.open([image], [question]).run(UNCOMPRESSED).decode(max_new_tokens=8)
        assert batched == want and alone == want


def test_accuracy_is_what_the_card_says(untouched):
    recorded = json.loads((WEIGHTS.parent / "accuracy.json").read_text())
    found = accuracy(untouched, build_tokenizer(), recorded["split"], count=24)
    for regime, value in found.items():
        said = recorded["accuracy"][regime]
        questions = 24 * 2  # at least so many; two to five a picture
        assert abs(value - said) <= 4 * np.sqrt(max(said * (1 - said), 0.02) / questions), regime


def test_pictures_matter_in_every_regime():
    recorded = json.loads((WEIGHTS.parent / "accuracy.json").read_text())
    for regime, value in recorded["accuracy"].items():
        assert value > recorded["blind"][regime], regime


class Probe(Selector):
    """Reads the CLS row and keeps what it was given."""

    name, stages, kinds = "probe", (), frozenset({"cls_attention"})

    def __init__(self):
        self.rows = []

    def signals(self, depth):
        return frozenset({Signal("cls_attention")})

    def score(self, tokens):
        self.rows += list(tokens.signals["cls_attention"].mean(1))
        return self.rows[-1][None]


@pytest.mark.parametrize("regime", ["search", "reading"])
def test_cls_attention_falls_on_objects_and_text(host, regime):
    probe, on, off = Probe(), [], []
    for i in range(16):
        sample = regime_sample(regime, "test", i)
        host.open([sample.image], [sample.turns[0].question]).thin(probe, 0.5)
        covered = sample.dense[..., 0].reshape(12, 2, 12, 2).transpose(0, 2, 1, 3).reshape(144, 4).any(1)
        on.append(probe.rows[-1].numpy()[covered].mean())
        off.append(probe.rows[-1].numpy()[~covered].mean())
    assert np.mean(on) > 1.5 * np.mean(off)
