"""Rows that show a video: the model's own answers when uncompressed, and methods that see all frames as one grid."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.registry import make
from foveate.compressors.signals import Signal
from foveate.models import load_host
from foveate.models.errors import BadInput, HostError
from foveate.models.features import TOKEN_FEATURES, feature_flops, reveal
from foveate.models.masks import Masks
from foveate.plans.plan import UNCOMPRESSED, Choice, Plan
from foveate.plans.portfolio import ActionTable, Portfolio
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast

PLANS = [
    UNCOMPRESSED,
    Plan.of(input=("downsample", 0.5)),
    Plan.of(input=("frames", 0.67), outside=("visionzip", 0.25)),
    Plan.of(encoder=("tome", 0.5)),
    Plan.of(encoder=("saint", 0.5)),
    Plan.of(outside=("egoprune", 0.5)),
    Plan.of(outside=("visionzip", 0.25)),
    Plan.of(outside=("par", 0.25)),
    Plan.of(projector=("meteor", 0.5)),
    Plan.of(encoder=("meteor", 0.5), outside=("hiprune", 0.5), projector=("meteor", 0.5), decode=("look_m", 0.5)),
    Plan.of(prefill=("fastv", 0.25)),
]


def frames(tiny, first, t=3, **size):
    return np.stack([tiny.picture(first + i, **size) for i in range(t)])


def hf(folder, rows, clips, limit):
    """The untouched model's answers, every frame a picture of its own behind the one before."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    texts = [row.prompt.replace("<image>", "<image>" * len(clip)) for row, clip in zip(rows, clips, strict=True)]
    flat = [Image.fromarray(frame) for clip in clips for frame in clip]
    inputs = processor(images=flat, text=texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
    found = [row[inputs["input_ids"].shape[1] :].tolist() for row in out]
    return [ids[: ids.index(3) + 1] if 3 in ids else ids for ids in found]


@pytest.mark.parametrize("settings", [{"text_tower": True}, {"tower": "siglip", "decoder": "qwen2"}], ids=str)
def test_videos_and_pictures_in_one_batch_answer_like_the_untouched_model(folders, hosts, tiny, settings):
    clips = [frames(tiny, 0, 3), frames(tiny, 5, 1)[0], frames(tiny, 7, 2, height=40, width=50)]
    p = hosts(**settings).open(clips, tiny.questions[:3])
    p.decode(max_new_tokens=7)
    assert p.generated == hf(folders(**settings), p.rows, [clips[0], clips[1][None], clips[2]], 7)
    assert [state.grid for state in p.states["encoder"]] == [(3, 4, 4), (1, 4, 4), (2, 4, 4)]
    assert p.counts["prefill"] == [48, 16, 32] and [len(units) for units in p.units] == [3, 1, 2]


def test_up_to_the_tower_frames_are_pictures(host, tiny):
    clip = frames(tiny, 0)
    p, alone = host.open([clip], ["left ?"]), host.open(list(clip), ["left ?"] * 3)
    for q in (p, alone):
        q.encode(make("encoder", "tome"), 0.5)
    joined, parts = p.tokens[0], alone.tokens
    assert torch.allclose(joined.x, torch.cat([part.x for part in parts]), atol=1e-6)
    assert joined.size.tolist() == torch.cat([part.size for part in parts]).tolist()
    assert joined.position.tolist() == [n + 16 * t for t, part in enumerate(parts) for n in part.position.tolist()]
    assert joined.origin.tolist() == joined.position.tolist() and joined.cls is None and not joined.whole
    assert p.counts["encoder"] == [24] and p.tokens[0].grid == (3, 4, 4)


def test_behind_the_tower_a_method_sees_all_frames_at_once(host, tiny):
    still = np.repeat(tiny.picture(0)[None], 3, axis=0)  # nothing moves: later frames only repeat the first
    p = host.open([Clip.of(still)], ["left ?"])
    p.thin(make("outside", "egoprune"), 0.5)
    assert set((p.tokens[0].position // 16).tolist()) == {0}
    moved = np.concatenate([still[:2], tiny.picture(1)[None]])
    q = host.open([moved], ["left ?"])
    q.project(make("projector", "meteor"), 0.5)
    assert q.counts["projector"] == [24] and set((q.tokens[0].position[-9:] // 16).tolist()) == {2}


def test_signals_of_a_video_are_those_of_its_frames(host, tiny):
    clip, kinds = frames(tiny, 0), ("cls_attention", "received_attention", "keys", "attention_map", "block_states")
    p, alone = host.open([clip], ["left ?"]), host.open(list(clip), ["left ?"] * 3)
    for q in (p, alone):
        q.encode()
    asked = [Signal(kind, 2) for kind in kinds]
    found, wanted = p.ask.of_block([0], 2, asked, "outside"), alone.ask.of_block([0, 1, 2], 2, asked, "outside")
    for kind in kinds:
        parts = list(wanted[kind])
        whole = (
            torch.block_diag(*parts)
            if kind == "attention_map"
            else torch.cat(parts, 0 if parts[0].ndim == 2 and kind in ("keys", "block_states") else -1)
        )
        assert torch.allclose(found[kind][0], whole, atol=1e-6)
    assert p.ledger[0].by_stage()["outside"] == sum(ledger.by_stage()["outside"] for ledger in alone.ledger)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.label())
def test_a_forecast_is_the_ledger_and_the_ledger_what_torch_counts(hosts, folders, tiny, plan):
    host = hosts(text_tower=True)
    p = host.open([frames(tiny, 0), frames(tiny, 4, 2)], tiny.questions[:2])
    p.run(plan)
    p.decode(max_new_tokens=3)
    for row in range(2):
        forecast = host.forecast(plan, p.shapes[row], new_tokens=len(p.generated[row]))
        assert forecast == p.ledger[row] or (
            plan["outside"].method in ("par", "egoprune") and forecast.total >= p.ledger[row].total
        )


@pytest.mark.parametrize("plan", [PLANS[0], PLANS[2], PLANS[7]], ids=lambda plan: plan.label())
def test_torch_counts_what_the_ledger_says(folders, tiny, plan):
    host = load_host(folders(text_tower=True))
    host.model.set_attn_implementation("eager")
    p = host.open([frames(tiny, 0)], tiny.questions[:1])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        p.run(plan)
        p.decode(max_new_tokens=3)
    assert p.ledger[0].matrix_total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_fewer_frames_are_the_video_of_those_frames(host, tiny):
    clip = Clip.of(frames(tiny, 0, 5), 2.0)
    p = host.open([tiny.picture(9), clip, clip], ["left ?"] * 3)
    p.resize([None, make("input", "frames"), None], [1.0, 0.65, 1.0])
    assert p.counts["input"] == [16, 48, 80] and [len(units) for units in p.units] == [1, 3, 5]
    p.decode(max_new_tokens=3)
    fewer = host.open([clip.at(np.array([0, 2, 4]))], ["left ?"])
    fewer.decode(max_new_tokens=3)
    assert p.generated[1] == fewer.generated[0] and torch.allclose(p.logits[1], fewer.logits[0], atol=1e-5)
    assert p.laid[1].pictures[0].film.seconds == (0.0, 1.0, 2.0)
    assert p.ledger[1].total == fewer.ledger[0].total < p.ledger[2].total
    fork = p.fork([1, 0])
    assert [len(units) for units in fork.units] == [3, 1]
    assert fork.next_turn(["what ?", "what ?"]).laid[0].views[0].grid == (3, 4, 4)


def test_less_than_one_frame_is_refused_and_masked(host, tiny):
    shape = host.open([frames(tiny, 0)], ["left ?"]).shapes[0]
    with pytest.raises(ValueError, match="frames: count 12 is below 16, one whole frame"):
        host.forecast(Plan.of(input=("frames", 0.25)), shape)
    choices = {"input": (Choice("frames", 0.25), Choice("frames", 0.5), Choice("downsample", 0.25))}
    masks = Masks(host, ActionTable.from_portfolio(Portfolio("frames", choices)))
    assert masks.mask("input", UNCOMPRESSED, shape).sum() == 3
    assert masks.mask("input", UNCOMPRESSED, host.open([tiny.picture(0)], ["left ?"]).shapes[0]).sum() == 2


def test_features_of_a_video_are_finite_and_paid_for_as_forecast(host, tiny):
    p = host.open([frames(tiny, 0)], ["left ?"])
    for group in TOKEN_FEATURES:
        assert np.isfinite(reveal(p, group)[0]).all()
    assert p.ledger[0].by_stage()["features"] == sum(feature_flops(host, p.shapes[0]).values())


def test_methods_for_videos_are_masked_on_pictures(host, tiny):
    plan = Plan.of(projector=("meteor", 0.5))
    with pytest.raises(HostError, match="meteor: is for videos, a picture is one frame"):
        host.forecast(plan, host.open([tiny.picture(0)], ["left ?"]).shapes[0])
    with pytest.raises(HostError, match="meteor: is for videos"):
        host.forecast(plan, host.open([[tiny.picture(0), frames(tiny, 0)]], ["left ?"]).shapes[0])
    assert host.supports("projector", "meteor") == "meteor: is for videos, a picture is one frame"
    choices = {"projector": (Choice("meteor", 0.5), Choice("average_pool", 0.25))}
    masks = Masks(host, ActionTable.from_portfolio(Portfolio("both", choices)))
    shapes = host.open([tiny.picture(0), frames(tiny, 0)], ["left ?"] * 2).shapes
    assert [int(masks.mask("projector", UNCOMPRESSED, shape).sum()) for shape in shapes] == [2, 3]


def test_forks_and_further_questions_take_the_frames_along(host, tiny):
    p = host.open([tiny.picture(0), frames(tiny, 1)], ["left ?", "left ?"])
    p.encode(make("encoder", "tome"), 0.5)
    fork, fresh = p.fork([1, 0, 1]), host.open([frames(tiny, 1)], ["left ?"])
    assert fork.units == [[0, 1, 2], [3], [4, 5, 6]] and len(fork.traces) == 7
    fork.thin(make("outside", "visionzip"), 0.5)
    fresh.encode(make("encoder", "tome"), 0.5)
    fresh.thin(make("outside", "visionzip"), 0.5)
    for row in (0, 2):
        assert torch.allclose(fork.tokens[row].x, fresh.tokens[0].x, atol=1e-6)
    q = fork.next_turn(["what is this ?"] * 3)
    assert q.stop == "outside" and q.rows[0].pictures[0].film is not None
    q.decode(max_new_tokens=2)


def test_what_is_no_video_is_refused_in_one_line(host, hosts, tiny):
    with pytest.raises(BadInput, match=r"row 1: video: needs a uint8 array \(T, H, W, 3\), got float64"):
        host.open([tiny.picture(0), np.zeros((2, 8, 8, 3))], ["left ?"] * 2)
    with pytest.raises(BadInput, match="a video: this model's decoder reads a CLS of each picture"):
        hosts(strategy="full").open([frames(tiny, 0)], ["left ?"])
    with pytest.raises(ValueError, match="fps = 0 must be positive"):
        Clip.of(frames(tiny, 0), 0)
