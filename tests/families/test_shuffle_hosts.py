"""InternVL, SmolVLM and Idefics3 as hosts: untouched they are the model, compressed they keep counts and ledgers."""

import numpy as np
import pytest
import tiny_shuffle as tiny
import torch
from tiny_shuffle import END, FAMILIES, IDEFICS3, INTERNVL, QUESTIONS, SIDE, SMOLVLM, TOKENS
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate.compressors.registry import COMPRESSORS, make
from foveate.models import load_host
from foveate.models.errors import HostError, UnsupportedModel
from foveate.models.families import family as host_class
from foveate.models.families.shuffle import folded
from foveate.models.features import TOKEN_FEATURES, feature_flops, reveal
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan, keep_count

SIZES = [(40, 40), (40, 90), (90, 40), (20, 30)]
VARIANTS = [
    (INTERNVL, {"use_qk_norm": True, "norm_type": "rms_norm"}),
    (INTERNVL, {"use_mean_pooling": False, "vision_feature_layer": -2}),
    (INTERNVL, {"decoder": "qwen3"}),
    (SMOLVLM, {"sizes": {"do_image_splitting": False}}),
    (IDEFICS3, {"image_size": 48, "decoder": "mistral"}),
]
RATIOS = (0.75, 0.5, 0.1)
CELLS = [pytest.param(stage, name, id=f"{stage}:{name}") for stage, name in sorted(COMPRESSORS)]
MIXED = Plan.of(input=("downsample", 0.5), outside=("tome", 0.5), prefill=("pyramiddrop", 0.5), decode=("look_m", 0.5))
POOLED = Plan.of(projector=("average_pool", 0.25), prefill=("fastv", 0.5))
fast = pytest.mark.fast


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(family, settings) -> host, HF's own model, its processor; saved and loaded once."""
    torch.set_num_threads(1)
    made = {}

    def get(family, attention="sdpa", **settings):
        key = (family, attention, str(settings))
        if key not in made:
            folder = tiny.build(tmp_path_factory.mktemp(family), family, **settings)
            host, model = load_host(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
            host.model.set_attn_implementation(attention)
            made[key] = host, model, tiny.processor(family, **settings.get("sizes", {}))
        return made[key]

    return get


def pictures(number=4, first=0):
    return [[tiny.picture(first + s, *SIZES[s % 4])] for s in range(number)]


@torch.no_grad()
def hf_answers(model, inputs, limit=7):
    out = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
    answers = [row[inputs["input_ids"].shape[1] :].tolist() for row in out]
    return [ids[: ids.index(END) + 1] if END in ids else ids for ids in answers]


@pytest.mark.parametrize(
    ("family", "settings"),
    [*(pytest.param(f, {}, marks=fast) for f in FAMILIES), *VARIANTS],
    ids=str,
)
def test_each_row_alone_generates_what_the_model_generates(opened, family, settings):
    host, model, reference = opened(family, **settings)
    seen = set()
    for images, question in zip(pictures(), QUESTIONS, strict=True):
        inputs = tiny.hf_inputs(reference, [images], [question])
        (wanted,) = hf_answers(model, inputs)
        p = host.open([images[0]], [question])
        p.decode(max_new_tokens=7)
        assert p.generated == [wanted]
        with torch.no_grad():
            assert torch.allclose(p.logits[0], model(**inputs).logits[0, -1], atol=1e-4)
        seen.add(tuple(wanted))
    assert len(seen) > 2  # a model that says one thing only would prove nothing


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_question_has_other_answers_for_other_pictures(opened, family):
    p = opened(family)[0].open(pictures(6), ["what is this ?"] * 6)
    p.decode(max_new_tokens=7)
    assert len({tuple(ids) for ids in p.generated}) > 2


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_together_are_the_batch_padded_on_the_left_and_each_alone(opened, family):
    host, model, reference = opened(family)
    images = [*pictures(), [tiny.picture(7, 20, 20), tiny.picture(8, 40, 90)]]
    questions = [*QUESTIONS, QUESTIONS[1]]
    inputs = tiny.hf_inputs(reference, images, questions)
    assert not inputs["attention_mask"].all()
    p = host.open(images, questions)
    p.decode(max_new_tokens=7)
    assert p.generated == hf_answers(model, inputs)
    for row in (1, 4):
        alone = host.open([images[row]], [questions[row]])
        alone.prefill()
        assert torch.allclose(alone.logits[0], p.logits[row], atol=1e-5)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_two_pictures_in_one_row_are_what_the_model_sees(opened, family):
    host, model, reference = opened(family)
    seen = set()
    for first in range(3):
        row = [tiny.picture(first, *SIZES[first]), tiny.picture(first + 9, *SIZES[first + 1])]
        inputs = tiny.hf_inputs(reference, [row], [QUESTIONS[0]])
        p = host.open([row], [QUESTIONS[0]])
        p.decode(max_new_tokens=7)
        assert p.generated == hf_answers(model, inputs)
        swapped = host.open([row[::-1]], [QUESTIONS[0]])
        swapped.prefill()
        assert not torch.allclose(swapped.logits, p.logits, atol=1e-2)  # the order of pictures is seen
        seen.add(tuple(p.generated[0]))
        assert p.counts["projector"] == [TOKENS[family] * len(p.rows[0].views)]
    assert len(seen) > 1


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_gives_the_same(opened, family):
    (usual, _, _), (eager, _, _) = opened(family), opened(family, "eager")
    a, b = usual.open(pictures(), QUESTIONS), eager.open(pictures(), QUESTIONS)
    a.decode(max_new_tokens=7), b.decode(max_new_tokens=7)
    assert a.generated == b.generated


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_runs(tmp_path, family):
    folder = tiny.build(tmp_path, family)
    p = load_host(folder, dtype="bfloat16").open(pictures(2), QUESTIONS[:2])
    full = load_host(folder).open(pictures(2), QUESTIONS[:2])
    p.prefill(), full.prefill()
    assert torch.nn.functional.cosine_similarity(p.logits.float(), full.logits).min() > 0.9


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_blind_rows_are_the_model_without_a_picture(opened, family):
    host, model, _ = opened(family)
    p = host.open(pictures(2), QUESTIONS[:2])
    p.blind([1])
    p.prefill()
    row = p.rows[1]
    with torch.no_grad():
        wanted = model(input_ids=torch.from_numpy(row.ids[row.view < 0])[None]).logits[0, -1]
    assert torch.allclose(p.logits[1], wanted, atol=1e-4)
    assert p.counts["prefill"] == [p.rows[0].shape.n_visual, 0]


def rows(family):
    """Two rows: a picture, and two of other shapes."""
    return [*pictures(1), [tiny.picture(7, 20, 20), tiny.picture(8, 90, 40)]], QUESTIONS[:2]


def refused(host, plan, shapes):
    """Skips where the host says why it cannot."""
    for stage, choice in plan.active:
        reason = None if plan.is_blind else host.supports(stage, choice.method)
        if reason is not None:
            pytest.skip(reason)
    for shape in shapes:
        try:
            host.forecast(plan, shape)
        except HostError as reason:
            pytest.skip(str(reason))


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stage", "name"), CELLS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_methods_keep_their_counts_view_by_view_and_cost_what_was_forecast(opened, family, stage, name, ratio):
    host = opened(family)[0]
    plan, p = Plan.of(**{stage: (name, ratio)}), host.open(*rows(family))
    refused(host, plan, [row.shape for row in p.rows])
    untouched = list(p.rows)
    p.run(plan)
    p.decode(max_new_tokens=3)
    method, per_view = make(stage, name), stage in ("outside", "projector")
    for i, row in enumerate(untouched):
        n = [view.n for view in row.views]
        most = sum(keep_count(m, ratio) for m in n) if per_view else keep_count(sum(n), ratio)
        left = p.counts[stage][i]
        if method.adaptive:
            assert len(n) <= left <= most if per_view else 1 <= left <= most
        elif stage == "input":
            assert len(n) <= left <= sum(max(1, keep_count(m, ratio)) for m in n)
        else:
            assert left == most
        if not method.adaptive:
            assert p.ledger[i] == host.forecast(plan, row.shape, new_tokens=len(p.generated[i]))
    assert torch.isfinite(p.logits).all()


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(name for stage, name in COMPRESSORS if stage == "outside"))
def test_tokens_that_stay_stand_where_their_anchors_stood(opened, family, name):
    host = opened(family)[0]
    p = host.open(*rows(family))
    refused(host, Plan.of(outside=(name, 0.5)), [row.shape for row in p.rows])
    p.thin(make("outside", name), 0.5)
    p.project()
    views = iter(p.tokens)
    for row in p.rows:
        for view in row.views:
            state = next(views)
            placed = state.position >= 0  # what has no place of its own stands behind
            origin = state.origin[placed].tolist()
            assert state.n == keep_count(view.n, 0.5) and origin == sorted(set(origin))
            assert 0 <= origin[0] and origin[-1] < view.n and placed[: len(origin)].all()
            assert state.grid != view.grid or state.position[placed].tolist() == origin


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", [UNCOMPRESSED, BLIND, MIXED, POOLED], ids=lambda plan: plan.label())
def test_forecasts_of_whole_plans_are_ledgers(opened, family, plan):
    host = opened(family)[0]
    p = host.open(*rows(family))
    shapes = [row.shape for row in p.rows]
    refused(host, plan, shapes)
    p.run(plan)
    p.decode(max_new_tokens=3)
    for i, shape in enumerate(shapes):
        assert p.ledger[i] == host.forecast(plan, shape, new_tokens=len(p.generated[i]))


COUNTED = [UNCOMPRESSED, BLIND, MIXED, *[Plan.of(**{stage: (name, 0.4)}) for stage, name in sorted(COMPRESSORS)]]


@pytest.mark.matrix
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", COUNTED, ids=lambda plan: plan.label())
def test_matrix_flops_are_those_that_torch_counts(opened, family, plan):
    host = opened(family, "eager")[0]
    (_, images), (_, question) = rows(family)
    p = host.open([images], [question])
    refused(host, plan, [p.rows[0].shape])
    with FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=4)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_knob_shows_every_view_smaller(opened, family):
    host, model, _ = opened(family)
    knob = make("input", "downsample")
    p = host.open(*rows(family))
    before = list(p.rows)
    p.resize(knob, 0.3)
    side = 2 if family != SMOLVLM else 1
    for row, old in zip(p.laid, before, strict=True):
        assert [view.grid for view in row.views] == [(1, side, side)] * len(old.views)
        assert row.ids[row.view < 0].tolist() == old.ids[old.view < 0].tolist() and row.seed == old.seed
    p.prefill()
    for number, row in enumerate(p.laid):  # the same by HF's own modules, with the shorter prompt
        pixels = host.pixels(row.views)
        with torch.no_grad():
            if family == INTERNVL:
                f = model.model.get_image_features(pixels, return_dict=True).pooler_output.flatten(0, 1)
            else:
                f = model.model.get_image_features(pixels[None], return_dict=True).pooler_output[0]
            ids = torch.from_numpy(row.ids)[None]
            x = model.get_input_embeddings()(ids)
            x[0, torch.from_numpy(row.view >= 0)] = f
            assert torch.allclose(p.logits[number], model(inputs_embeds=x).logits[0, -1], atol=1e-4)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_acts_inside_the_tower(opened, family):
    host = opened(family)[0]
    names = [name for stage, name in COMPRESSORS if stage == "encoder"]
    assert names
    for name in names:
        reason = host.supports("encoder", name)
        assert str(SIDE[family] ** 2) in reason and "patches" in reason
        with pytest.raises(HostError, match="patches"):
            host.forecast(Plan.of(encoder=(name, 0.5)), host.prompt_shape(9))
    assert host.supports("encoder", "none") is None


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_cls_of_internvl_guides_and_never_becomes_a_token(opened, family):
    host = opened(family)[0]
    assert host.tower.has_cls == (family == INTERNVL) and not host.tower.hands_cls and not host.cls_stays
    p = host.open(pictures(2), QUESTIONS[:2])
    p.thin(make("outside", "visionzip"), 0.5)
    assert all(state.cls is None for state in p.tokens)
    assert p.counts["outside"] == [sum(keep_count(view.n, 0.5) for view in row.views) for row in p.rows]


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_pass_reveals_is_finite_differs_and_costs_what_is_said(opened, family):
    host = opened(family)[0]
    p = host.open(*rows(family))
    for group, names in TOKEN_FEATURES.items():
        found = reveal(p, group)
        assert all(f.shape == (len(names),) and np.isfinite(f).all() and abs(f).max() <= 1 for f in found)
        assert not np.allclose(found[0], found[1])
    for row, ledger in zip(p.rows, p.ledger, strict=True):
        charged = sum(f for stage, _, f, kind in ledger.entries if stage == "features")
        assert charged == sum(feature_flops(host, row.shape).values())


@fast
@torch.no_grad()
def test_what_cls_of_internvl_looks_at_is_revealed_unit_by_unit(opened):
    host, model, _ = opened(INTERNVL, "eager")
    p = host.open(*rows(INTERNVL))
    p.encode()
    views = [view for row in p.rows for view in row.views]
    model.set_attn_implementation("eager")
    seen = model.model.vision_tower(host.pixels(views), output_attentions=True).attentions[-1][:, :, 0, 1:].mean(1)
    wanted = folded("received_attention", seen, host.grid, 2)
    for number in range(len(views)):
        assert np.allclose(p.ask.cls_attention(number, "features"), wanted[number].numpy(), atol=1e-6)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_another_question_about_the_same_pictures_starts_behind_the_tower(opened, family):
    host, images = opened(family)[0], rows(family)[0]
    plan = Plan.of(outside=("tome", 0.5), prefill=("fastv", 0.5))
    p = host.open(images, QUESTIONS[:2]).run(plan)
    again = p.next_turn(QUESTIONS[2:])
    again.prefill(make("prefill", "fastv"), 0.5)
    fresh = host.open(images, QUESTIONS[2:])
    fresh.thin(make("outside", "tome"), 0.5)
    fresh.prefill(make("prefill", "fastv"), 0.5)
    assert again.ledger[0].by_stage()["encoder"] == p.ledger[0].by_stage()["encoder"]
    assert torch.allclose(again.logits, fresh.logits, atol=1e-4)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_a_usual_picture_is_one_of_a_views_size(opened, family):
    host = opened(family)[0]
    row = host.inputs.row(tiny.picture(0, tiny.VIEW[family], tiny.VIEW[family]), QUESTIONS[0], 0)
    assert host.prompt_shape(host.inputs.n_text(QUESTIONS[0])) == row.shape
    assert host.n_visual == row.shape.n_visual == TOKENS[family] * (1 if family == INTERNVL else 5)


@fast
@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_alone_says_what_a_pass_costs(opened, tmp_path, family):
    host = opened(family)[0]
    paper = host_class(family).on_paper(tiny.config(family), "paper")
    shape = host.inputs.row(tiny.picture(0), QUESTIONS[0], 0).shape
    plan = Plan.of(outside=("tome", 0.5), prefill=("fastv", 0.5))
    assert paper.forecast(plan, shape) == host.forecast(plan, shape) and paper.grid == host.grid


REFUSED = [
    (INTERNVL, {"vision_feature_select_strategy": "full"}, "no place for CLS"),
    (INTERNVL, {"vision_feature_layer": [1, -1]}, "needs one layer, not a list"),
    (INTERNVL, {"downsample_ratio": 0.3}, "downsample_ratio 0.3 is not one over a whole number"),
    (INTERNVL, {"image_size": [32, 16]}, r"image_size \[32, 16\]: needs squares"),
    (INTERNVL, {"image_size": [36, 36]}, "2 x 2 patches a token do not divide views"),
    (SMOLVLM, {"image_size": 32}, "views of 32 in patches of 4: needs squares whose sides 3 divides"),
    (IDEFICS3, {"decoder": "gpt2"}, "language model 'gpt2'; known"),
]


@fast
@pytest.mark.parametrize(("family", "settings", "reason"), REFUSED, ids=str)
def test_what_cannot_be_opened_is_refused_before_weights_are_read(tmp_path, family, settings, reason):
    config = tiny.config(family)
    decoder = settings.get("decoder")
    if decoder is not None:
        config.text_config = AutoConfig.for_model(decoder)
    for name, value in settings.items():
        if name != "decoder":
            setattr(config if hasattr(config, name) else config.vision_config, name, value)
    with pytest.raises(UnsupportedModel, match=reason):
        host_class(family).check(config, "x")
