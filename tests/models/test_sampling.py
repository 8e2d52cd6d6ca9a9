"""Sampling and beams: uncompressed, the untouched model's own; compressed, what teacher forcing says at every step."""

import pytest
import torch
from processed import hf_inputs
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, StoppingCriteria

from foveate.compressors.registry import make
from foveate.models import sampling
from foveate.models.behind import Continuation
from foveate.models.errors import BadInput

pytestmark = pytest.mark.fast

WARM = {"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2}
SETTINGS = [
    {"do_sample": True},
    WARM,
    {"do_sample": True, "num_return_sequences": 3},
    {"num_beams": 2},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 2, "do_sample": True},
    {"eos_token_id": [3, 9, 24]},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"generation_config": GenerationConfig(do_sample=True, top_k=5, eos_token_id=3, pad_token_id=0)},
]
LIMIT = 9


@pytest.fixture(scope="module")
def original(folders):
    """The untouched model and its processor."""
    folder = folders(text_tower=True)
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def asked(tiny, rows):
    return [tiny.picture(s) for s in range(rows)], list(tiny.questions[:rows])


@pytest.mark.parametrize("rows", [1, 4], ids=["single", "padded"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_without_compression_a_seed_gives_what_it_gives_the_model(host, original, tiny, settings, rows):
    model, processor = original
    inputs = hf_inputs(processor, *asked(tiny, rows))
    torch.manual_seed(5)
    wanted = model.generate(**inputs, max_new_tokens=LIMIT, **settings)[:, inputs["input_ids"].shape[1] :].tolist()
    p = host.open(*asked(tiny, rows))
    torch.manual_seed(5)
    p.decode(max_new_tokens=LIMIT, **settings)
    assert len(p.generated) == len(wanted) == rows * settings.get("num_return_sequences", 1)
    for own, theirs in zip(p.generated, wanted, strict=True):
        assert own == theirs[: len(own)]
        assert set(theirs[len(own) :]) <= {0, 3}  # what fills up behind an end
        assert len(own) == LIMIT or own[-1] in (3, 9, 24) or len(own) == len(theirs)


def test_another_seed_samples_other_tokens_and_sampling_is_not_greedy(host, tiny):
    p, found = host.open(*asked(tiny, 4)), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        p.decode(max_new_tokens=LIMIT, do_sample=True)
        found.append(p.generated)
    p.decode(max_new_tokens=LIMIT)
    assert found[0] == found[1] != found[2] and p.generated not in found


class Forced(sampling._Cache):
    """Every step from the prompt's caches anew: no cache of fed tokens that a beam search could mix up."""

    def logits(self, ids):
        b = len(self.of)
        if self.run is None:
            self.run, self.tokens = True, ids[:, :0]
            self.rows = torch.arange(b).repeat_interleave(len(ids) // b)
            return self.of.logits[self.rows]
        self.tokens = torch.cat([self.tokens, ids], dim=1)
        decoder = self.of.host.decoder
        return decoder.logits(Continuation(decoder, self.of.caches, self.rows).feed(self.tokens)[:, -1])

    def reorder_cache(self, order):
        self.tokens = self.tokens[order]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, WARM], ids=str)
@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ("fastv", None),
        ("pyramiddrop", "mustdrop"),
        ("pyramiddrop", "dycoke"),
        *((None, name) for name in ("look_m", "random", "dycoke")),
    ],
)
def test_behind_compressed_caches_each_step_is_what_teacher_forcing_says(
    monkeypatch, host, tiny, prefill, decode, settings
):
    if any(name and host.supports(stage, name) for stage, name in (("prefill", prefill), ("decode", decode))):
        pytest.skip("not a method of this host")
    p = host.open(*asked(tiny, 3))
    p.prefill(prefill and make("prefill", prefill), 0.5 if prefill else 1.0)
    p.choose_decode(decode and make("decode", decode), 0.5 if decode else 1.0)
    before = [cache.keys.clone() for cache in p.caches]
    torch.manual_seed(3)
    p.decode(max_new_tokens=LIMIT, **settings)
    found = p.generated
    assert all(torch.equal(cache.keys, keys) for cache, keys in zip(p.caches, before, strict=True))
    monkeypatch.setattr(sampling, "_Cache", Forced)
    torch.manual_seed(3)
    p.decode(max_new_tokens=LIMIT, **settings)
    assert p.generated == found


def test_a_beam_search_finds_a_likelier_answer_than_greedy_decoding_and_pays_for_every_beam(host, tiny):
    greedy, wide = host.open(*asked(tiny, 4)), host.open(*asked(tiny, 4))
    greedy.decode(make("decode", "random"), 0.5, LIMIT)
    wide.decode(make("decode", "random"), 0.5, LIMIT, num_beams=4, length_penalty=0.0, eos_token_id=-1)
    assert all(len(ids) == LIMIT for ids in wide.generated)

    def logprob(p, row):
        ids = torch.tensor([p.generated[row]])
        run = Continuation(host.decoder, p.caches, torch.tensor([row]))
        logits = torch.cat([p.logits[row][None, None], host.decoder.logits(run.feed(ids[:, :-1]))], dim=1)
        return float(logits.log_softmax(-1).gather(2, ids[..., None]).sum())

    longer = [row for row in range(4) if len(greedy.generated[row]) == LIMIT]
    assert longer and all(logprob(wide, row) >= logprob(greedy, row) - 1e-4 for row in longer)
    assert any(logprob(wide, row) > logprob(greedy, row) + 1e-3 for row in longer)
    for row in longer:
        assert wide.ledger[row].by_stage()["answer"] == 4 * greedy.ledger[row].by_stage()["answer"]
        assert wide.ledger[row].kv_bytes_end == 4 * greedy.ledger[row].kv_bytes_end


class Twice(StoppingCriteria):
    """Ends a row once its last two tokens are one."""

    def __call__(self, input_ids, scores, **_):
        return input_ids[:, -1] == input_ids[:, -2]


def test_a_callers_own_criteria_are_followed(host, original, tiny):
    model, processor = original
    inputs, rule = hf_inputs(processor, *asked(tiny, 4)), {"stopping_criteria": [Twice()], "repetition_penalty": 0.5}
    wanted = model.generate(**inputs, max_new_tokens=LIMIT, **rule)[:, inputs["input_ids"].shape[1] :]
    p = host.open(*asked(tiny, 4))
    p.decode(max_new_tokens=LIMIT, **rule)
    assert wanted.shape[1] < LIMIT
    assert [row[: len(own)] for row, own in zip(wanted.tolist(), p.generated, strict=True)] == p.generated


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cache_implementation": "static"}, "cache_implementation = 'static': every layer's cache has a length"),
        ({"cache_implementation": "paged"}, "cache_implementation = 'paged'"),
        ({"prefill_chunk_size": 8}, "prefill_chunk_size = 8: a prompt runs in one piece"),
        ({"use_cache": False}, "use_cache = False: an answer is made behind a cache"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens = 2: assisted decoding"),
        ({"assistant_model": object()}, "assistant_model: assisted decoding"),
        ({"past_key_values": object()}, "past_key_values: a cache of an earlier call"),
        ({"streamer": object()}, "streamer: tokens come once all rows are done"),
        ({"custom_generate": len}, "custom_generate: a loop of the caller's own"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate = True: token ids are all"),
        ({"guidance_scale": 2.0}, "guidance_scale = 2.0: it runs the model on a second prompt"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha = 0.6"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"warmth": 3}, "'warmth' is not one that can be followed"),
        ({"max_new_tokens": 0, "do_sample": True}, "0 new tokens are left|max_new_tokens"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_has_run(host, tiny, settings, why):
    p = host.open(*asked(tiny, 1))
    with pytest.raises(BadInput, match=why):
        p.decode(**{"max_new_tokens": 4, **settings})
    assert p.stop == "open"
