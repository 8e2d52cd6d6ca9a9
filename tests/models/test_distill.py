"""The recipe of learned compressors, on a tiny host: what is lost, that it falls, that a run can be cut and gone on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noise_lessons import Noise
from PIL import Image

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import learned, load_host
from foveate.models.distilling.judge import Figure, judge
from foveate.models.distilling.lessons import FileLessons, TaskLessons
from foveate.models.distilling.losses import Reconstructor, answer_losses, feature_loss
from foveate.models.distilling.pairs import Batch, drawn, nearest
from foveate.models.distilling.recipe import Run, factor, find
from foveate.models.distilling.settings import PARTS, Settings, settings_of
from foveate.models.errors import HostError
from foveate.models.visual import VisualState
from foveate.plans.plan import Plan
from foveate.tasks.base import TaskDataError

SMALL = Settings(steps_a=3, steps_b=3, batch=4, held_out=6, save_every=2)


def state(x, grid, whole=True):
    n = len(x)
    index = torch.arange(n)
    return VisualState(x, torch.ones(n), index, index, index[:, None], grid, whole=whole)


def values(run):
    return {name: value.clone() for name, value in run.network.state_dict().items()}


class TestLosses:
    def test_the_pooled_tokens_of_the_host_cost_only_their_lost_norm(self):
        z = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
        y = F.adaptive_avg_pool2d(z.T.view(1, 6, 4, 4), (2, 2)).flatten(2)[0].T
        lost = (y.square().mean().sqrt() - z.square().mean().sqrt()) ** 2
        loss = feature_loss([state(y, (1, 2, 2))], [state(z, (1, 4, 4))], None)
        assert float(loss) == pytest.approx(0.1 * float(lost), abs=1e-6)

    def test_a_grid_of_one_by_hand(self):
        z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # pooled: (2, 0); variance over both numbers is 2
        loss = feature_loss([state(torch.tensor([[0.0, 2.0]]), (1, 1, 1))], [state(z, (1, 1, 2))], None)
        norms = math.sqrt(4 / 2) - math.sqrt(10 / 4)
        assert float(loss) == pytest.approx(1 + 4 / 2 + 0.1 * norms**2, abs=1e-5)

    def test_views_of_different_shape_count_alike(self):
        one = ([state(torch.ones(1, 2), (1, 1, 1))], [state(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), (1, 1, 2))])
        two = ([state(torch.ones(2, 2), (1, 1, 2))], [state(torch.eye(4)[:, :2] + 1, (1, 2, 2))])
        alone = [float(feature_loss(*each, None)) for each in (one, two)]
        together = feature_loss(one[0] + two[0], one[1] + two[1], None)
        assert float(together) == pytest.approx(sum(alone) / 2, abs=1e-6)

    def test_tokens_without_a_grid_are_judged_by_what_can_be_made_of_them(self):
        torch.manual_seed(0)
        maker, y, z = Reconstructor((1, 2, 2), 8), torch.randn(3, 8), torch.randn(4, 8)
        loss = feature_loss([state(y, (1, 2, 2), whole=False)], [state(z, (1, 2, 2))], maker)
        made = maker(y[None], (1, 2, 2))[0].detach()
        norms = y.square().mean().sqrt() - z.square().mean().sqrt()
        expected = (made - z).square().mean() / z.var() + 0.1 * norms**2
        assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)
        assert maker(y[None], (1, 3, 5)).shape == (1, 15, 8)

    def test_new_tokens_with_places_are_held_against_what_is_nearest_to_each(self):
        z = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
        y = torch.stack(
            [z[[0, 1, 3, 4, 6, 7]].mean(0), z[[2, 5, 8]].mean(0)]
        )  # places 3 and 5: the middle is nearer to 3
        new = replace(state(y, (1, 3, 3), whole=False), position=torch.tensor([3, 5]))
        lost = (y.square().mean().sqrt() - z.square().mean().sqrt()) ** 2
        loss = feature_loss([new], [state(z, (1, 3, 3))], None, standing=True)
        assert float(loss) == pytest.approx(0.1 * float(lost), abs=1e-5)
        torch.manual_seed(0)
        maker = Reconstructor((1, 3, 3), 6)
        assert float(feature_loss([new], [state(z, (1, 3, 3))], maker).detach()) > 0.1  # of tokens that were kept

    def test_divergence_counts_answers_and_their_end_and_no_padding(self):
        teacher = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.5, 0.5], [0.5, 0.5]]]))
        student = torch.log(torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]], [[0.8, 0.2], [0.1, 0.9], [0.9, 0.1]]]))
        kl, same = answer_losses(student, teacher, torch.tensor([1, 0]))  # positions 0, 1 and 0
        wanted = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
        assert float(kl) == pytest.approx(wanted / 3, abs=1e-6) and float(same) == 1.0


class TestCounts:
    def test_a_draw_takes_one_of_the_counts_that_a_method_is_trained_at(self):
        method = make("projector", "ldpv2")
        ratios = [drawn(method, [(144, (1, 12, 12))], draw) for draw in (0.0, 0.3, 0.6, 0.99)]
        assert [round(144 * ratio) for ratio in ratios] == [9, 16, 36, 64]

    def test_all_of_the_tokens_are_never_drawn(self):
        assert drawn(make("projector", "mqt"), [(16, (1, 4, 4))], 0.99) == 8 / 16

    def test_views_of_one_row_get_a_ratio_that_suits_them_all(self):
        method, shapes = make("projector", "ldpv2"), [(16, (1, 4, 4)), (24, (1, 4, 6))]
        ratio = nearest([method], shapes, 0.25)
        assert [round(n * ratio) for n, _ in shapes] == [4, 6]

    def test_no_ratio_at_all_is_one(self):
        assert nearest([make("projector", "ldpv2")], [(1, (1, 1, 1))], 0.5) == 1.0
        assert drawn(make("projector", "ldpv2"), [(1, (1, 1, 1))], 0.5) == 1.0


class TestRun:
    @pytest.mark.parametrize("name", ["ldpv2", "mqt"])
    def test_both_losses_fall_and_only_the_network_learns(self, fresh, tiny, name, tmp_path):
        seen = []
        fixed = {key: value.clone() for key, value in fresh.model.state_dict().items()}
        run = Run(fresh, name, Noise(tiny.questions, period=4), Settings(steps_a=16, steps_b=12, batch=4), tmp_path)
        before = values(run)
        run.train([seen.append])
        by_part = {part: [p.losses for p in seen if p.part == part] for part in PARTS}
        for part, key in (("features", "features"), ("answers", "loss")):
            first, last = (np.mean([x[key] for x in each]) for each in (by_part[part][:4], by_part[part][-4:]))
            assert last < first, (part, first, last)
        assert {"features", "kl", "cross_entropy", "loss"} == set(by_part["answers"][0])
        losses = by_part["answers"][3]
        weighted = losses["kl"] + 0.5 * losses["cross_entropy"] + 0.1 * losses["features"]
        assert losses["loss"] == pytest.approx(weighted, rel=1e-4)
        assert any(not torch.equal(before[key], value) for key, value in values(run).items())
        assert all(torch.equal(fixed[key], value) for key, value in fresh.model.state_dict().items())
        assert all(p.grad is None for p in fresh.model.parameters())

    def test_a_run_that_was_cut_gives_the_same_weights(self, fresh, lessons, tmp_path):
        whole = Run(fresh, "mqt", lessons, SMALL, tmp_path / "whole")
        whole.train()

        class Cut(Exception):
            pass

        def cut_at(part, step):
            def watch(progress):
                if (progress.part, progress.step) == (part, step):
                    raise Cut

            return watch

        for stop in (("features", 3), ("answers", 3)):  # one step behind the last checkpoint
            with pytest.raises(Cut):
                Run(fresh, "mqt", lessons, SMALL, tmp_path / "cut", resume=True).train([cut_at(*stop)])
        again = Run(fresh, "mqt", lessons, SMALL, tmp_path / "cut", resume=True)
        assert (again.part, again.step) == ("answers", 2)
        again.train()
        assert all(torch.equal(value, values(again)[name]) for name, value in values(whole).items())
        assert not list(tmp_path.rglob("*.part"))

    def test_what_came_out_is_written_loaded_and_run(self, fresh, folders, lessons, tmp_path, tiny):
        run = Run(fresh, "projector:ldpv2", lessons, SMALL, tmp_path / "work")
        run.train()
        path, figures = run.finish(tmp_path / "out")
        about = learned.about(path)
        assert path.name == "projector-ldpv2.safetensors" and about["host"] == fresh.fingerprint
        assert about["data"] == "noise" and about["steps_b"] == 3 and len(about["figures"]) == len(figures) > 0
        assert [f.count for f in figures] == [1, 4, 9] and all(f.rows == 6 for f in figures)
        assert all(f.kl > 0 and 0 <= f.agreement <= 1 and 0 <= f.pool_agreement <= 1 for f in figures)
        host = load_host(folders(text_tower=True), learned=tmp_path / "out")
        plan = Plan.of(projector=("ldpv2", 0.25))
        p = host.open([tiny.picture(0)], [tiny.questions[0]]).run(plan)
        assert p.counts["prefill"] == [4] and len(p.decode(max_new_tokens=2)) == 1
        mine = fresh.open([tiny.picture(0)], [tiny.questions[0]]).run(plan)
        assert torch.equal(mine.logits, p.logits) and not mine.logits.requires_grad

    def test_other_settings_hosts_and_data_are_refused(self, fresh, hosts, lessons, tmp_path):
        Run(fresh, "ldpv2", lessons, SMALL, tmp_path).save()
        with pytest.raises(ValueError, match=r"checkpoint\.pt: a training already; go on with it \(--resume\)"):
            Run(fresh, "ldpv2", lessons, SMALL, tmp_path)
        for other, words in (
            (lambda: Run(fresh, "mqt", lessons, SMALL, tmp_path, resume=True), "method 'projector:ldpv2', here"),
            (lambda: Run(hosts(tower="siglip"), "ldpv2", lessons, SMALL, tmp_path, resume=True), "another.*host"),
            (lambda: Run(fresh, "ldpv2", lessons, replace(SMALL, seed=1), tmp_path, resume=True), "seed 0, here 1"),
        ):
            with pytest.raises(ValueError, match=words):
                other()

    def test_a_loss_that_is_not_finite_changes_nothing(self, fresh, lessons, tmp_path):
        run = Run(fresh, "ldpv2", lessons, SMALL, tmp_path)
        torch.nn.init.constant_(run.network.place.bias, float("inf"))
        before = values(run)
        with pytest.raises(FloatingPointError, match="features, step 0: loss is"):
            run.train()
        assert all(torch.equal(value, values(run)[name]) for name, value in before.items())

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("ldpv3", "'ldpv3' is no method that is distilled; there are .*projector:ldpv2"),
            ("average_pool", "'average_pool' is no method that is distilled"),
            ("outside:ldpv2", "is no method that is distilled"),
        ],
    )
    def test_what_does_not_learn_is_refused_by_name(self, fresh, name, words):
        with pytest.raises(ValueError, match=words):
            find(name, fresh)

    def test_a_host_that_could_not_run_it_is_told_why(self, fresh, monkeypatch):
        monkeypatch.setattr(fresh, "forbids", lambda stage, name, frames: f"{name}: not here")
        with pytest.raises(HostError, match="ldpv2: not here"):
            find("ldpv2", fresh)

    @pytest.mark.parametrize(
        "bad", [{"batch": 0}, {"steps_a": -1}, {"seed": -1}, {"rate": 0.0}, {"steps_a": 0, "steps_b": 0}]
    )
    def test_numbers_out_of_range_are_refused(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            settings_of(**bad)

    def test_the_rate_rises_over_three_hundredths_and_falls_to_nothing(self):
        rates = [factor(step, 100) for step in range(101)]
        assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and rates[100] == pytest.approx(0)
        assert all(b <= a for a, b in zip(rates[2:], rates[3:], strict=False))
        assert rates[51] == pytest.approx(0.5 * (1 + math.cos(math.pi * 48 / 97)))


def test_the_student_learns_through_the_pass_that_runs_it(fresh, lessons, tmp_path):
    run = Run(fresh, "ldpv2", lessons, SMALL, tmp_path)
    batch = Batch(fresh, "projector", [lessons.lesson(i, 0) for i in range(3)])
    student = batch.student("projector", run.method, [0.25] * 3, learning=True)
    student.prefill()
    student.logits.sum().backward()
    assert run.network.place.weight.grad.abs().sum() > 0
    silent = batch.student("projector", run.method, [0.25] * 3)
    silent.prefill()
    assert not silent.logits.requires_grad and torch.allclose(silent.logits, student.logits, atol=1e-5)
    pooled = batch.student("projector", make("projector", "average_pool"), [0.25] * 3)
    pooled.prefill()
    assert torch.allclose(pooled.logits, silent.logits, atol=1e-4)  # how an untrained one begins


class TestInsideTheTower:
    def test_gradients_reach_the_network_through_the_blocks_behind_each_site(self, fresh, lessons, tmp_path):
        run = Run(fresh, "qg_vtc", lessons, SMALL, tmp_path)
        assert run.stage == "encoder" and run.pupil.by_features
        batch = Batch(fresh, "encoder", [lessons.lesson(i, 0) for i in range(3)])
        assert batch.shapes == [[(16, (1, 4, 4))]] * 3
        student = batch.student("encoder", run.method, [0.25] * 3, learning=True)
        student.prefill()
        student.logits.square().sum().backward()
        network = run.network
        assert network.up.weight.grad.abs().sum() > 0 and network.down.weight.grad.abs().sum() > 0
        assert (network.u.grad.flatten(1).abs().sum(1) > 0).all() and (network.scale.grad.abs() > 0).all()
        assert all(p.grad is None for p in fresh.model.parameters())

    def test_it_is_taught_at_several_counts_written_loaded_and_run(self, fresh, folders, lessons, tmp_path, tiny):
        seen = []
        run = Run(fresh, "qg_vtc", lessons, replace(SMALL, steps_a=6, steps_b=6), tmp_path / "work")
        before = values(run)
        run.train([seen.append])
        assert len({progress.keep for progress in seen}) > 1 and {p.part for p in seen} == set(PARTS)
        assert all(not torch.equal(before[name], value) for name, value in values(run).items())
        path, figures = run.finish(tmp_path / "out")
        assert path.name == "encoder-qg_vtc.safetensors"
        assert [f.count for f in figures] == [1, 4, 9] and all(f.rows == 6 for f in figures)
        host = load_host(folders(text_tower=True), learned=tmp_path / "out")
        plan = Plan.of(encoder=("qg_vtc", 0.25))
        p = host.open([tiny.picture(0)] * 2, tiny.questions[:2]).run(plan)
        assert p.counts["encoder"] == p.counts["prefill"] == [4, 4] and not p.logits.requires_grad
        mine = fresh.open([tiny.picture(0)] * 2, tiny.questions[:2]).run(plan)
        assert torch.equal(mine.logits, p.logits)
        again, alone = p.next_turn(tiny.questions[2:4]), host.open([tiny.picture(0)] * 2, tiny.questions[2:4])
        assert again.stop == "input"  # another question chooses others
        for each in (again, alone):
            each.encode(host.make("encoder", "qg_vtc"), 0.25)
            each.prefill()
        assert torch.allclose(again.logits, alone.logits, atol=1e-5)


def test_parameters_may_learn_at_rates_of_their_own(fresh, lessons, tmp_path):
    run = Run(fresh, "d_abstractor", lessons, SMALL, tmp_path)
    named = {id(p): name for name, p in run.network.named_parameters()}
    main, slow = run.optimiser.param_groups
    wanted = {f"layers.{layer}.cross.offset.{part}" for layer in range(6) for part in ("weight", "bias")}
    assert {named[id(p)] for p in slow["params"]} == {"shift", *wanted}
    assert len(main["params"]) == len(named) - 13 + len(list(run.pupil.reconstructor.parameters()))
    rates = []
    run.train([lambda progress: rates.append([group["lr"] for group in run.optimiser.param_groups])])
    wanted = [factor(step, 3) for step in range(3)] * 2
    assert [main for main, _ in rates] == pytest.approx([1e-4 * each for each in wanted])
    assert [slow for _, slow in rates] == pytest.approx([2e-5 * each for each in wanted])
    faster = Run(fresh, "d_abstractor", lessons, replace(SMALL, rate=10.0), tmp_path / "faster")
    assert faster.peaks == pytest.approx([1e-3, 2e-4])
    again = Run(fresh, "d_abstractor", lessons, SMALL, tmp_path, resume=True)
    assert [len(group["params"]) for group in again.optimiser.param_groups] == [len(main["params"]), 13]


def test_an_untrained_method_that_pools_is_as_good_as_pooling(fresh, lessons, tmp_path):
    method = Run(fresh, "ldpv2", lessons, SMALL, tmp_path).method
    for figure in judge(fresh, "projector", method, lessons.held_out(5), 2):
        assert figure.kl == pytest.approx(figure.pool_kl, abs=1e-4) and figure.agreement == figure.pool_agreement
        assert figure.rows == 5 and figure.count == round(16 * figure.keep)


@pytest.mark.parametrize(
    ("kl", "agreement", "better"), [(0.1, 0.9, True), (0.1, 0.8, True), (0.1, 0.7, False), (0.2, 0.9, False)]
)
def test_better_is_nearer_and_agrees_no_less(kl, agreement, better):
    assert Figure(0.25, 4, kl, agreement, pool_kl=0.2, pool_agreement=0.8, rows=1).better is better


class TestLessons:
    def test_tasks_repeat_by_number_and_judge_by_another_split(self):
        source = TaskLessons(["scenes"])
        one, again, other = source.lesson(7, 0), TaskLessons(["scenes"]).lesson(7, 0), source.lesson(7, 1)
        assert np.array_equal(one.image, again.image) and (one.question, one.answer) == (again.question, again.answer)
        assert not np.array_equal(one.image, other.image) or one.question != other.question
        held = source.held_out(5)
        assert len(held) == 5 and not any(np.array_equal(h.image, one.image) for h in held)
        with pytest.raises(ValueError, match="nothing.*unknown"):
            TaskLessons(["nothing"])

    @pytest.fixture
    def rows(self, tmp_path):
        """40 pictures, two questions about each, some without an answer; one row names a picture that is not there."""
        lines = []
        for i in range(40):
            Image.fromarray(np.full((20, 20, 3), 6 * i, np.uint8)).save(tmp_path / f"{i}.png")
            asked = (("what ?", ["red"]), ("is ?", None))
            lines += [{"image": f"{i}.png", "question": q, "answers": a} for q, a in asked]
        lines.insert(3, {"image": "gone.png", "question": "what ?", "answers": ["red"]})
        path = tmp_path / "data.jsonl"
        path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
        return path

    def test_a_file_is_drawn_without_repeats_and_keeps_some_pictures_for_judging(self, rows):
        told = []
        source = FileLessons(rows, report=told.append)
        n = len(source.taught)
        held = {int(lesson.image[0, 0, 0]) for lesson in source.held_out(1000)}
        assert len(source.held_out(1000)) == 2 * len(held) and len(held) in (3, 4)
        drawn_ = [source.lesson(i, 3) for i in range(n)]
        shown = {int(lesson.image[0, 0, 0]) for lesson in drawn_}
        assert shown | held == {6 * i for i in range(40)} and not shown & held
        assert {lesson.answer for lesson in drawn_} == {"red", None}
        assert told == [] or (len(told) == 1 and told[0].startswith("data.jsonl:7: ") and "gone.png" in told[0])
        assert [x.image[0, 0, 0] for x in drawn_] != [source.lesson(n + i, 3).image[0, 0, 0] for i in range(n)]

    def test_a_file_that_is_not_there_or_holds_nothing_is_refused(self, tmp_path):
        with pytest.raises(TaskDataError, match="none.jsonl: file not found"):
            FileLessons(tmp_path / "none.jsonl")
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(TaskDataError, match="holds no row to train on"):
            FileLessons(tmp_path / "empty.jsonl")
        (tmp_path / "bad.jsonl").write_text("{\nnope\n")
        with pytest.raises(TaskDataError, match="no row of it can be used"):
            FileLessons(tmp_path / "bad.jsonl", report=lambda line: None).lesson(0, 0)


def test_what_reaches_over_time_is_held_against_pooling_that_does(fresh):
    films = TaskLessons(["video"]).held_out(2)
    for name, wanted in (("ldpv2", "average_pool"), ("video_xl_pro", "tubelets")):
        method = untrained(make("projector", name), fresh.widths, fresh.matrices())
        found = judge(fresh, "projector", method, films, 2)
        assert wanted in [figure.pool for figure in found] and all(figure.rows == 2 for figure in found)
