"""LLaVA-NeXT and LLaVA-OneVision, opened: nothing compressed is the untouched model; costs, refusals, smaller views."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_anyres as tiny
import torch
from tiny_anyres import END, IMAGE, NEXT, ONEVISION, SIDE
from tiny_words import QUESTIONS
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from foveate.compressors.registry import COMPRESSORS
from foveate.models import load_host
from foveate.models.errors import UnsupportedModel
from foveate.models.families import family as host_class
from foveate.models.features import feature_flops, reveal
from foveate.models.inputs import NEWLINE
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan, keep_count

SHAPES = [(32, 32), (20, 90), (90, 20), (70, 61), (23, 44), (44, 66), (2, 700)]


@pytest.fixture(scope="module", params=[(NEXT, "mistral"), (ONEVISION, "qwen2")], ids=["next", "onevision"])
def settings(request):
    torch.set_num_threads(1)
    return request.param


@pytest.fixture(scope="module")
def folder(settings, tmp_path_factory):
    return tiny.build(tmp_path_factory.mktemp("model"), *settings)


@pytest.fixture(scope="module")
def host(folder):
    return load_host(folder)


@pytest.fixture(scope="module")
def hf(settings, folder):
    """What the untouched model says to rows of (pictures, question): answers and logits behind the prompt."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), tiny.processor(settings[0])

    @torch.no_grad()
    def ask(rows, limit=7):
        texts = []
        for pictures, question in rows:
            content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": question}]
            texts.append(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
        pictures = [each for each, _ in rows]
        if settings[0] == NEXT:
            pictures = [one for each in pictures for one in each]
        made = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
        out = model.generate(**made, do_sample=False, max_new_tokens=limit)
        said = [ids[made["input_ids"].shape[1] :].tolist() for ids in out]
        return [ids[: ids.index(END) + 1] if END in ids else ids for ids in said], model(**made).logits[:, -1]

    return ask


def opened(host, rows):
    return host.open([pictures for pictures, _ in rows], [question for _, question in rows])


SINGLES = [([tiny.picture(i, *shape)], QUESTIONS[i % 4]) for i, shape in enumerate(SHAPES)]
SEVERAL = [
    ([tiny.picture(10, 32, 32), tiny.picture(11, 20, 90)], QUESTIONS[0]),
    ([tiny.picture(12, 70, 61)], QUESTIONS[1]),
    ([tiny.picture(13, 90, 20), tiny.picture(14, 44, 44), tiny.picture(15, 23, 44)], QUESTIONS[3]),
]


def test_each_row_alone_generates_what_the_model_generates(host, hf):
    answers = set()
    for row in SINGLES:
        p = opened(host, [row])
        p.decode(max_new_tokens=7)
        (wanted,), logits = hf([row])
        assert p.generated == [wanted] and torch.allclose(p.logits, logits, atol=1e-4)
        answers.add(tuple(wanted))
    assert len(answers) > 2  # a model that says one thing only would prove nothing


def test_the_same_question_has_other_answers_for_other_pictures(host):
    p = opened(host, [([tiny.picture(s, 40, 60)], QUESTIONS[0]) for s in range(6)])
    p.decode(max_new_tokens=7)
    assert len({tuple(ids) for ids in p.generated}) > 2


@pytest.mark.parametrize("rows", [SINGLES[:4], SEVERAL], ids=["one picture a row", "up to three pictures a row"])
def test_rows_together_are_the_padded_batch_and_each_alone(host, hf, rows):
    p = opened(host, rows)
    p.decode(max_new_tokens=7)
    wanted, logits = hf(rows)
    assert p.generated == wanted and torch.allclose(p.logits, logits, atol=1e-4)
    for number, row in enumerate(rows):
        alone = opened(host, [row])
        alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[number], atol=1e-5)


def test_padding_stays_out_of_the_prompt_and_newlines_end_its_rows(host, settings):
    p = opened(host, [([tiny.picture(0, *PADDED[settings[0]])], QUESTIONS[0])])
    p.prefill()
    row, side = p.rows[0], SIDE[settings[0]]
    assert row.shape.n_tokens == len(row.views) * side**2 > row.shape.n_visual == (row.position >= 0).sum()
    assert p.counts["prefill"] == [row.shape.n_visual]
    assert p.opened.stream.length.tolist() == [len(row.ids)]
    assert row.shape.newlines == (row.position == NEWLINE).sum() > 0


def test_blind_rows_are_the_model_without_a_picture(host):
    p = opened(host, SINGLES[:2])
    p.blind([1])
    p.prefill()
    with torch.no_grad():
        wanted = host.model(input_ids=torch.from_numpy(p.rows[1].ids[p.rows[1].ids != IMAGE])[None]).logits[0, -1]
    assert torch.allclose(p.logits[1], wanted, atol=1e-4) and p.counts["prefill"][1] == 0


def test_eager_attention_and_half_precision_run(host, folder):
    rows = SINGLES[:2]
    plain, eager, half = opened(host, rows), load_host(folder), load_host(folder, dtype="bfloat16")
    eager.model.set_attn_implementation("eager")
    other, rough = opened(eager, rows), opened(half, rows)
    for p in (plain, other, rough):
        p.prefill()
    assert torch.allclose(plain.logits, other.logits, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(plain.logits, rough.logits).min() > 0.99


def plans():
    yield UNCOMPRESSED
    yield BLIND
    yield from (Plan.of(**{stage: (name, 0.5)}) for stage, name in sorted(COMPRESSORS))
    yield Plan.of(input=("downsample", 0.5), outside=("visionzip", 0.5), prefill=("fastv", 0.5))
    yield Plan.of(encoder=("tome", 0.5), projector=("average_pool", 0.5), decode=("look_m", 0.5))


# what the prompt shows of a picture: all of its tiles; the tiles without padding; with OneVision, a map shrunk to four
# tiles; next to nothing of the tiles
FULL = {NEXT: (64, 64), ONEVISION: (44, 44)}
PADDED = {NEXT: (20, 90), ONEVISION: (23, 44)}
SHRUNK, THIN = (70, 61), (2, 700)
PLANS = list(plans())


def kinds(settings):
    """Rows of every kind of picture."""
    singles = [([tiny.picture(1, *shape)], QUESTIONS[1]) for shape in (PADDED[settings[0]], SHRUNK, THIN)]
    return [*singles, SEVERAL[0]]


def ran(host, row, plan, limit=3):
    """A pass by a plan; skips what the host does not offer or a method cannot count out, with the reason."""
    shape = host.inputs.rows([row[0]], [row[1]])[0].shape
    try:
        host.forecast(plan, shape)
    except ValueError as reason:
        pytest.skip(str(reason))
    p = opened(host, [row]).run(plan)
    p.decode(max_new_tokens=limit)
    return p


@pytest.mark.parametrize("plan", PLANS, ids=Plan.label)
def test_a_forecast_is_the_ledger_of_the_pass(host, settings, plan):
    for row in kinds(settings):
        p = ran(host, row, plan)
        known, paid = host.forecast(plan, p.shapes[0], new_tokens=len(p.generated[0])), p.ledger[0]
        ceiling = any(COMPRESSORS[stage, choice.method].adaptive for stage, choice in plan.active if stage != "input")
        inside = plan["encoder"].method != "none"  # how much of the padding a tower then holds is not known before
        if ceiling or inside and p.shapes[0].shown:
            assert paid.total <= known.total
        else:
            assert known.by_stage() == paid.by_stage() and known.tokens == paid.tokens


@pytest.mark.parametrize("plan", PLANS, ids=Plan.label)
@pytest.mark.parametrize("kind", [0, 1, 3])
def test_what_is_charged_is_what_torch_counts(host, settings, plan, kind):
    host.model.set_attn_implementation("eager")
    if host.text is not None:
        host.text.model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            p = ran(host, kinds(settings)[kind], plan)
    finally:
        host.model.set_attn_implementation("sdpa")
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.matrix
@pytest.mark.parametrize("picture", ["full", "padded", "shrunk"])
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.1])
@pytest.mark.parametrize("stage, name", sorted(COMPRESSORS))
def test_every_method_that_is_offered_keeps_its_counts_and_the_newlines(host, settings, stage, name, ratio, picture):
    shape = {"full": FULL[settings[0]], "padded": PADDED[settings[0]], "shrunk": SHRUNK}[picture]
    p = ran(host, ([tiny.picture(2, *shape)], QUESTIONS[2]), Plan.of(**{stage: (name, ratio)}), limit=2)
    laid, adaptive = p.laid[0], COMPRESSORS[stage, name].adaptive
    if stage in ("encoder", "outside", "projector"):
        for number, state in enumerate(p.of_row("projector", 0)):
            entries = laid.entries[number]
            shown = int((entries >= 0).sum())
            if stage == "encoder":
                most = min(shown, keep_count(len(entries), ratio))
                assert state.n == most or state.n < most and (adaptive or shown < len(entries))
            else:
                assert state.n == keep_count(shown, ratio) or adaptive and 1 <= state.n < keep_count(shown, ratio)
            own = state.origin[state.position >= 0]  # a CLS that a method kept stands at the view's first token
            coarser = 3 * state.n // 7 if name == "chat_univi" else 1  # its middle and coarse levels have no place
            assert (entries[state.origin] >= 0).all() and own.unique().numel() == own.numel() >= state.n - coarser
    elif stage == "input":
        assert sum(v.n for v in laid.views) <= sum(keep_count(v.n, ratio) for v in p.rows[0].views)
    else:
        n = laid.shape.n_visual
        assert p.counts["prefill"][0] == (n if stage == "decode" else keep_count(n, ratio)) or adaptive
    stream = p.opened.stream
    assert int(stream.length[0]) == int(stream.visual[0].sum()) + len(laid.text)
    newlines = np.flatnonzero(laid.position == NEWLINE)
    assert set(newlines.tolist()) <= set(stream.entry[0, : int(stream.length[0])].tolist())
    assert torch.isfinite(p.logits).all() and len(p.generated[0]) >= 1


@pytest.mark.parametrize("ratio", [0.25, 0.16])
def test_pooling_acts_on_what_the_prompt_shows_of_each_tile(host, settings, ratio):
    p = ran(host, ([tiny.picture(2, *FULL[settings[0]])], QUESTIONS[2]), Plan.of(projector=("average_pool", ratio)))
    side = 2  # of 4 and of 5
    assert [state.grid for state in p.of_row("projector", 0)] == [(1, side, side)] * 5
    assert p.counts["projector"] == [5 * side * side]


def test_a_shrunk_map_is_mixed_unless_something_thins_its_tiles(host, settings):
    if settings[0] == NEXT:
        pytest.skip("LLaVA-NeXT shrinks no map")
    row = ([tiny.picture(1, *SHRUNK)], QUESTIONS[1])
    plain = opened(host, [row])
    plain.project()
    layout = plain.rows[0].pictures[0].layout
    thinned = opened(host, [row]).run(Plan.of(outside=("random", 0.5)))
    for view, (whole, state) in enumerate(
        zip(plain.of_row("projector", 0), thinned.of_row("projector", 0), strict=True)
    ):
        tokens = plain.of_row("encoder", 0)[view].rest
        assert whole.n == layout.shown()[view][1] * layout.shown()[view][2] and len(tokens) == 25
        assert torch.allclose(state.x, host.project(tokens)[state.origin], atol=1e-5)  # the nearest tokens, as they are
        mixed = host.project(tokens)[whole.origin]
        assert torch.allclose(whole.x, mixed, atol=1e-5) == (view == 0)
    paid = plain.ledger[0].by_stage("matrix")["projector"], thinned.ledger[0].by_stage("matrix")["projector"]
    assert paid[0] > 5 * paid[1]


def test_smaller_views_are_laid_out_anew_and_cost_less(host, settings):
    for row in kinds(settings):
        p, plain = ran(host, row, Plan.of(input=("downsample", 0.4))), ran(host, row, UNCOMPRESSED)
        small, whole = p.laid[0].shape, plain.laid[0].shape
        assert len(set(small.grids)) == 1 and small.grids[0][1] < SIDE[settings[0]] and p.shapes[0] == whole
        assert small.n_visual < whole.n_visual and small.newlines <= whole.newlines
        assert host.reshaped(whole, small.grids) == small  # known without the pixels
        assert p.ledger[0].total < plain.ledger[0].total


def test_the_usual_prompt_has_the_shape_of_such_a_picture(host, settings):
    size = 2 * tiny.TILE[settings[0]]
    row = host.inputs.row(tiny.picture(0, size, size), QUESTIONS[0], 0)
    assert host.prompt_shape(row.shape.n_text - row.shape.newlines) == replace(row.shape, phrases=None)


def test_what_a_pass_reveals_is_told_by_view_and_costs_no_more_than_is_known_before(host, settings):
    for row in kinds(settings):
        p = opened(host, [row])
        known = feature_flops(host, p.shapes[0])
        for group in ("block1", "encoder", "layer1"):
            paid = p.ledger[0].by_stage().get("features", 0)
            (found,) = reveal(p, group)
            assert np.isfinite(found).all() and found.any()
            assert p.ledger[0].by_stage()["features"] - paid <= known[group]


def test_a_further_question_finds_the_pictures_as_they_are(host, settings):
    row = kinds(settings)[1]
    p = opened(host, [row])
    p.prefill()
    again, alone = p.next_turn([QUESTIONS[3]]), opened(host, [(row[0], QUESTIONS[3])])
    again.prefill()
    alone.prefill()
    assert torch.allclose(again.logits, alone.logits, atol=1e-5)


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_other_decoders_open_too(decoder, tmp_path):
    host = load_host(tiny.build(tmp_path, NEXT, decoder))
    p = opened(host, SINGLES[:2])
    p.prefill()
    model, processor = host.model, tiny.processor(NEXT)
    for (pictures, question), logits in zip(SINGLES[:2], p.logits, strict=True):
        talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        made = processor(images=pictures, text=processor.apply_chat_template(talk), return_tensors="pt")
        with torch.no_grad():
            assert torch.allclose(model(**made).logits[0, -1], logits, atol=1e-4)


def test_settings_that_transformers_itself_cannot_run_are_refused(settings):
    family, decoder = settings
    config = tiny.model(family, decoder).config
    config.vision_feature_select_strategy = {NEXT: "full", ONEVISION: "default"}[family]
    with pytest.raises(UnsupportedModel, match="feature selection|patches of a"):
        host_class(family).check(config, "tiny")
