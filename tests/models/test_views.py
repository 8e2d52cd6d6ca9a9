"""Rows of several pictures and views: the model's own answers when uncompressed, and what compression keeps."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from picked import Picked
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.base import KVReducer, KVReduction
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models import load_host
from foveate.models.errors import BadInput, HostError
from foveate.models.families.llava import LlavaHost, LlavaInputs
from foveate.models.features import TOKEN_FEATURES, feature_flops, reveal
from foveate.models.inputs import NEWLINE, Framed, PromptShape, View, resized
from foveate.plans.plan import BLIND, STAGES, UNCOMPRESSED, Plan

pytestmark = pytest.mark.fast

APART = (  # words between the pictures
    "{% for m in messages %}USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}this <image> thing "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT :{% endfor %}"
)
MODELS = [
    {"tower": "clip"},
    {"tower": "clip", "strategy": "full"},
    {"tower": "siglip", "decoder": "qwen2"},
    {"tower": "clip", "chat": None},
    {"tower": "clip", "chat": APART},
]


def hf(folder, images, questions, limit):
    """The untouched model's answers to rows of several pictures, in one padded batch."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    texts = []
    for pictures, question in zip(images, questions, strict=True):
        content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
        if processor.chat_template:
            talk = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))
        else:
            texts.append(f"USER: {'<image>' * len(pictures)}\n{question} ASSISTANT:")
    flat = [Image.fromarray(picture) for pictures in images for picture in pictures]
    inputs = processor(images=flat, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
    found = [row[inputs["input_ids"].shape[1] :].tolist() for row in out]
    return [ids[: ids.index(3) + 1] if 3 in ids else ids for ids in found], inputs


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_rows_of_one_two_and_three_pictures_answer_like_the_untouched_model(folders, hosts, tiny, settings):
    images = [[tiny.picture(s) for s in row] for row in ((0, 1), (2,), (3, 4, 5), (1, 0))]
    wanted, inputs = hf(folders(**settings), images, tiny.questions, 7)
    p = hosts(**settings).open([images[0], images[1][0], *images[2:]], tiny.questions)
    p.decode(max_new_tokens=7)
    assert p.generated == wanted
    for row, ids, mask in zip(p.rows, inputs["input_ids"], inputs["attention_mask"], strict=True):
        assert row.ids.tolist() == ids[mask.bool()].tolist()
    for row, pictures in enumerate(images):
        alone = hosts(**settings).open([pictures], tiny.questions[row : row + 1])
        alone.decode(max_new_tokens=7)
        assert alone.generated == [wanted[row]]
    assert p.counts["prefill"] == [32, 16, 48, 32]


def test_the_order_of_pictures_matters_and_so_does_the_seed(host, tiny):
    one, two = tiny.picture(0), tiny.picture(1)
    p = host.open([[one, two], [two, one], [one], one], ["left ?"] * 4)
    p.prefill()
    assert not torch.allclose(p.logits[0], p.logits[1], atol=1e-3)
    assert torch.allclose(p.logits[2], p.logits[3], atol=1e-5)  # last bits go by the place in a batch
    seeds = [row.seed for row in p.rows]
    assert seeds[2] == seeds[3] and len(set(seeds)) == 3
    drawn = host.open([[one, one]], ["left ?"])
    drawn.thin(make("outside", "random"), 0.5)
    assert drawn.tokens[0].position.tolist() != drawn.tokens[1].position.tolist()  # each view draws for itself


def test_a_row_without_a_picture_is_refused(host, tiny):
    with pytest.raises(BadInput, match="image 1: an empty list"):
        host.open([tiny.picture(0), []], ["left ?", "left ?"])
    with pytest.raises(BadInput, match="row 0: image .not/there.png.: no such file"):
        host.open([[tiny.picture(0), "not/there.png"]], ["left ?"])


@pytest.mark.parametrize(
    "plan",
    [
        Plan.of(encoder=("tome", 0.5)),
        Plan.of(outside=("visionzip", 0.25)),
        Plan.of(projector=("average_pool", 0.25)),
        Plan.of(input=("downsample", 0.5)),
    ],
    ids=lambda plan: plan.label(),
)
def test_up_to_the_projector_each_view_is_compressed_as_if_alone(host, tiny, plan):
    one, two = tiny.picture(0), tiny.picture(1)
    p, alone = host.open([[one, two]], ["left ?"]), host.open([one, two], ["left ?"] * 2)
    for q in (p, alone):
        q.run(plan)
    for ours, theirs in zip(p.states["projector"], alone.states["projector"], strict=True):
        assert torch.allclose(ours.x, theirs.x, atol=1e-5)
        assert ours.position.tolist() == theirs.position.tolist() and ours.size.tolist() == theirs.size.tolist()
    assert p.counts["projector"] == [sum(alone.counts["projector"])]


def entries_of(host, p, row=0):
    """(S, D) what stands at each entry of a row's uncompressed prompt, entry by entry."""
    laid = p.rows[row]
    states, out = p.of_row("projector", row), []
    for token, view, position in zip(laid.ids.tolist(), laid.view.tolist(), laid.position.tolist(), strict=True):
        if position == NEWLINE:
            out.append(host.newline())
        elif view < 0:
            out.append(host.decoder.embed(torch.tensor(token)))
        else:
            out.append(states[view].x[position])
    return torch.stack(out)


@torch.no_grad()
def twin(host, x, visual, place, cuts, answer, renumber=False):
    """Log-probability of an answer when the whole sequence is recomputed with these cuts: {layer: indices left}."""
    decoder = host.decoder
    x = torch.cat([x, decoder.embed(torch.tensor(answer))])[None]
    place = torch.cat([place, place.max() + 1 + torch.arange(len(answer))[:, None]])
    visual = torch.cat([visual, torch.zeros(len(answer), dtype=torch.bool)])
    for index, layer in enumerate(decoder.layers):
        if index in cuts:
            keep = ~visual
            keep[visual.nonzero()[:, 0][list(cuts[index])]] = True
            x, place, visual = x[:, keep], place[keep], visual[keep]
            place = torch.arange(x.shape[1])[:, None] if renumber else place
        s = x.shape[1]
        mask = torch.ones(1, 1, s, s, dtype=torch.bool).tril()
        x = layer(x, attention_mask=mask, position_embeddings=decoder.rotation(x, place[None]))
    logp = decoder.logits(x[0]).log_softmax(-1)
    ids = [*answer, 3]
    return sum(logp[-len(ids) + i, t].item() for i, t in enumerate(ids))


class LinedInputs(LlavaInputs):
    """A picture as itself and as a smaller view of 2 x 3 tokens, a newline behind every row of tokens of both."""

    grids = ((1, 4, 4), (1, 2, 3))

    def framed(self, rgb):
        whole = super().framed(rgb).views[0]
        return self.lined([resized(whole, grid, self.patch) for grid in self.grids], rgb.shape[:2])

    def lined(self, views, size):
        view, position = [], []
        for number, each in enumerate(views):
            for row in range(each.grid[1]):
                view += [number] * each.grid[2] + [-1]
                position += [*range(row * each.grid[2], (row + 1) * each.grid[2]), NEWLINE]
        return Framed(tuple(views), (self.image_token_id,) * len(view), np.array(view), np.array(position), size)


class LinedHost(LlavaHost):
    """A LLaVA whose pictures are two views with newlines between: no published model, all that the core must bear."""

    def inputs_of(self, processor):
        return LinedInputs(
            processor, self.model.config.image_token_index, self.tower.grid, self.tower.patch, self.cls_stays
        )

    def newline(self):
        return torch.linspace(-1, 1, self.decoder.config.hidden_size)

    def prompt_shape(self, n_text):
        return PromptShape(n_text + 6, LinedInputs.grids, newlines=6)


@pytest.fixture(scope="module")
def lined(folders, tiny):
    """A lined host, with the text tower."""
    plain = load_host(folders(text_tower=True))
    return LinedHost(plain.model, plain.inputs.processor, plain.text, "lined")


@pytest.mark.parametrize("pictures", [1, 2])
def test_views_and_newlines_stand_where_the_prompt_has_them(lined, tiny, pictures):
    p = lined.open([[tiny.picture(s) for s in range(pictures)]], ["left ?"])
    p.prefill()
    row = p.rows[0]
    wanted = PromptShape(len(row.ids) - 22 * pictures, LinedInputs.grids * pictures, newlines=6 * pictures)
    assert row.shape == replace(wanted, phrases=row.phrases) and row.phrases == lined.text.phrase_tokens("left ?")
    with torch.no_grad():
        wanted = lined.model(inputs_embeds=entries_of(lined, p)[None]).logits[0, -1]
    assert torch.allclose(p.logits[0], wanted, atol=1e-5)
    assert p.ledger[0].total == lined.forecast(UNCOMPRESSED, row.shape).total


def test_newlines_are_protected_and_a_blind_row_has_none(lined, tiny):
    p = lined.open([tiny.picture(0), tiny.picture(1)], ["left ?"] * 2)
    p.blind([1])
    p.thin(make("outside", "stride"), 0.1)
    p.prefill(make("prefill", "fastv"), 0.25)
    p.choose_decode(make("decode", "look_m"), 0.1)
    stream, row = p.opened.stream, p.rows[0]
    lines = np.flatnonzero(row.position == NEWLINE).tolist()
    there = stream.entry[0, : int(stream.length[0])].tolist()
    assert set(lines) < set(there) and there == sorted(there)
    assert p.counts["outside"] == [3, 0] and p.cached[0] == [row.shape.n_text + 1] * 4
    words = p.rows[1].ids[p.rows[1].position == -1]
    assert p.cached[1] == [len(words)] * 4
    with torch.no_grad():
        wanted = lined.model(input_ids=torch.from_numpy(words)[None]).logits[0, -1]
    assert torch.allclose(p.logits[1], wanted, atol=1e-5)


CUTS = [((1, (0, 3, 5, 20, 21)),), ((2, (19,)),), ((1, (1, 2, 3, 8, 9, 15, 16, 20)), (2, (0, 6, 7)), (3, (1,)))]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("policy", ["keep", "renumber"])
def test_cuts_of_entries_that_are_no_block_equal_a_full_recomputation(lined, tiny, cuts, policy):
    p = lined.open([tiny.picture(0), [tiny.picture(2)] * 2], tiny.questions[1:3])
    p.prefill(Picked(cuts, policy), 0.1)
    answers = ["green thing two", "red"]
    found = p.score([[answer] for answer in answers])
    for row, (answer, score) in enumerate(zip(answers, found, strict=True)):
        laid = p.rows[row]
        visual, place = torch.from_numpy(laid.position >= 0), torch.from_numpy(laid.place)
        ids = lined.inputs.answer_ids(laid, answer)
        wanted = twin(lined, entries_of(lined, p, row), visual, place, dict(cuts), ids, policy == "renumber")
        assert score.logprob[0] == pytest.approx(wanted, abs=1e-4)


@dataclass(frozen=True)
class Evict(KVReducer):
    """Keeps every fourth visual entry."""

    name = "evict"
    stages = ("decode",)

    def plan(self, cache, count):
        b, k, _, _ = cache.keys.shape
        keep = ~cache.visual
        keep[cache.visual.nonzero()[::4, 0][:count]] = True
        return KVReduction(keep.nonzero()[:, 0].expand(b, k, -1))


def test_eviction_of_entries_that_are_no_block_equals_hiding_them_from_the_answer(lined, tiny):
    p = lined.open([[tiny.picture(0), tiny.picture(1)], tiny.picture(2)], tiny.questions[:2])
    p.choose_decode(Evict(), 0.25)
    answers = ["green thing two", "red"]
    found = p.score([[answer] for answer in answers])
    assert p.counts["decode"] == [11, 6]
    for row, (answer, score) in enumerate(zip(answers, found, strict=True)):
        laid, ids = p.rows[row], lined.inputs.answer_ids(p.rows[row], answer)
        with torch.no_grad():
            x = torch.cat([entries_of(lined, p, row), lined.decoder.embed(torch.tensor(ids))])[None]
            s, first = x.shape[1], len(laid.ids)
            visual = np.flatnonzero(laid.position >= 0)
            hidden = sorted(set(visual.tolist()) - set(visual[::4][: p.counts["decode"][row]].tolist()))
            mask = torch.ones(1, 1, s, s, dtype=torch.bool).tril()
            mask[..., first:, hidden] = False
            place = torch.arange(s)[None, :, None]
            for layer in lined.decoder.layers:
                x = layer(x, attention_mask=mask, position_embeddings=lined.decoder.rotation(x, place))
            logp = lined.decoder.logits(x[0]).log_softmax(-1)
        wanted = sum(logp[first - 1 + i, t].item() for i, t in enumerate([*ids, 3]))
        assert score.logprob[0] == pytest.approx(wanted, abs=1e-4)


PLANS = [
    UNCOMPRESSED,
    BLIND,
    *(Plan.of(**{stage: (name, 0.25)}) for stage, name in sorted(COMPRESSORS)),
    Plan.of(encoder=("tome", 0.5), outside=("visionzip", 0.5), prefill=("pyramiddrop", 0.5), decode=("look_m", 0.5)),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.label())
@pytest.mark.parametrize("family", ["plain", "lined"])
def test_a_forecast_of_several_views_is_the_ledger_of_the_pass(host, lined, tiny, plan, family):
    host = {"plain": host, "lined": lined}[family]
    p = host.open([[tiny.picture(0), tiny.picture(1)], tiny.picture(2)], [tiny.questions[1], tiny.questions[2]])
    try:
        costs = [host.forecast(plan, shape, 3) for shape in p.shapes]
    except HostError as reason:
        pytest.skip(str(reason))
    p.run(plan)
    p.decode(max_new_tokens=3)
    for row, cost in enumerate(costs):
        assert host.forecast(plan, p.shapes[row], len(p.generated[row])) == p.ledger[row]
        assert len(p.generated[row]) == 3 or cost.total > p.ledger[row].total


@pytest.mark.parametrize(
    "plan", [Plan.of(outside=("trim", 0.25)), Plan.of(prefill=("fastv", 0.25))], ids=lambda plan: plan.label()
)
def test_further_questions_about_several_views(lined, tiny, plan):
    p = lined.open([[tiny.picture(0), tiny.picture(1)]], ["what is this ?"])
    p.run(plan)
    p.decode(max_new_tokens=2)
    q = p.next_turn(["what is there ?"])
    for stage in STAGES[STAGES.index(q.stop) + 1 :]:
        choice = plan[stage]
        act = dict(zip(STAGES, (q.resize, q.encode, q.thin, q.project, q.prefill, q.choose_decode), strict=True))[stage]
        act(None if choice.is_none else make(stage, choice.method), choice.keep)
    q.decode(max_new_tokens=2)
    assert q.ledger[0] == lined.forecast(plan, p.shapes[0], new_tokens=2, turns=2)
    fresh = lined.open([[tiny.picture(0), tiny.picture(1)]], ["what is there ?"]).run(plan)
    assert torch.allclose(q.logits, fresh.logits, atol=1e-5)


def test_features_of_several_views(host, lined, tiny):
    one, two = tiny.picture(0), tiny.picture(1)
    p, alone = host.open([[one, two]], ["left ?"]), host.open([one, two], ["left ?"] * 2)
    for group in ("block1", "encoder"):
        each = reveal(alone, group)
        assert np.allclose(reveal(p, group)[0], (each[0] + each[1]) / 2, atol=1e-6)
    for p in (host.open([[one, two]], ["left ?"]), lined.open([[one, two]], ["left ?"])):
        for group in TOKEN_FEATURES:
            (found,) = reveal(p, group)
            assert np.isfinite(found).all() and found.shape == (len(TOKEN_FEATURES[group]),)
        assert p.ledger[0].by_stage()["features"] == sum(feature_flops(p.host, p.shapes[0]).values())


def test_forks_take_all_views_of_their_rows(host, tiny):
    p = host.open([[tiny.picture(0), tiny.picture(1)], tiny.picture(2)], tiny.questions[:2])
    p.thin([make("outside", "stride"), None], [0.25, 1.0])
    q = p.fork([1, 0, 0])
    assert [state.n for state in q.tokens] == [16, 4, 4, 4, 4] and q.counts["outside"] == [16, 8, 8]
    q.prefill()
    p.prefill()
    assert torch.allclose(q.logits, p.logits[[1, 0, 0]], atol=1e-5)


def test_places_of_tokens_that_no_entry_shows_are_those_before_them(host):
    view = View(np.zeros((32, 32, 3), np.uint8), (1, 2, 2))
    shown = Framed((view,), (4, 4), np.array([0, 0]), np.array([1, 3]), (32, 32))
    row = host.inputs.laid([shown], "left ?", "<image> left ?", [1, 4, 9])
    assert row.entries[0].tolist() == [-1, 1, -1, 2] and row.first == (1,)
    assert row.places[0].tolist() == [[0], [0], [0], [1]]
    assert row.shape.n_visual == 2 and row.shape.n_tokens == 4
