"""Masks and episodes on a forecast of round numbers: no model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from foveate.controller.observation import HEAD, Layout
from foveate.envs.episode import Episode, Terms, group_vectors
from foveate.envs.inputs import Input
from foveate.envs.masks import Masks
from foveate.models.inputs import PromptShape
from foveate.plans import BLIND, UNCOMPRESSED, ActionTable, Choice, Plan, Portfolio

pytestmark = pytest.mark.fast

PORTFOLIO = Portfolio(
    "round",
    {
        "input": (Choice("blind", 0.0), Choice("downsample", 0.5)),
        "outside": (Choice("visionzip", 0.5), Choice("unheard_of", 0.5)),
        "prefill": (Choice("fastv", 0.5),),
    },
    max_active_stages=2,
)
TABLE = ActionTable.from_portfolio(PORTFOLIO)
SHARE = {"blind": 0.1, "downsample": 0.5, "visionzip": 0.6, "fastv": 0.75}


class Round:
    """1000 FLOPs for each text entry, times the share of each method; a token of an answer is 1."""

    asked = 0

    def supports(self, stage, name):
        return "unheard_of: needs the signal telepathy, which this host has not" if name == "unheard_of" else None

    prompt_shape = staticmethod(lambda n_text: PromptShape(n_text, ((1, 3, 5),)))

    def forecast(self, plan, shape, new_tokens=0, turns=1):
        self.asked += 1
        if plan["input"].method == "downsample" and plan["outside"].method == "visionzip":
            raise ValueError("visionzip cannot give 7 of 15 tokens")
        share = np.prod([SHARE[choice.method] for _, choice in plan.active])
        return SimpleNamespace(total=1000 * shape.n_text * share + new_tokens)


ONE, TWO, THREE = (Round.prompt_shape(n) for n in (1, 2, 3))


def masks(feature_cost=None, answer_tokens=0):
    return Masks(Round(), TABLE, answer_tokens, feature_cost)


def legal(mask, stage):
    return {choice.method for m, r, choice in TABLE.offers(stage) if mask[m, r]}


class TestMasks:
    def test_what_the_host_cannot_do_is_masked_with_its_reason(self):
        m = masks()
        assert legal(m.free("outside"), "outside") == {"none", "visionzip"}
        assert m.refusal(Choice("unheard_of", 0.5), "outside", UNCOMPRESSED).endswith(
            "telepathy, which this host has not"
        )
        after = Plan.of(input=("downsample", 0.5))
        assert legal(m.free("outside", after), "outside") == {"none"}
        assert m.refusal(Choice("visionzip", 0.5), "outside", after) == "visionzip cannot give 7 of 15 tokens"

    def test_prices_hold_the_answer_and_the_features_of_stops_with_a_choice(self):
        cost = {"block1": 1000.0, "encoder": 20.0, "layer1": 3.0}
        m = masks(cost, answer_tokens=4)
        assert m.full(ONE) == 1004
        assert m.price(UNCOMPRESSED, ONE) == 1004 + 20 + 3  # nothing is on offer at the encoder
        assert m.price(BLIND, ONE) == 104
        # a method at the input leaves prefill alone to decide about
        assert m.price(Plan.of(input=("downsample", 0.5)), ONE) == 504 + 3
        # two stages are active: nothing is asked behind them
        assert m.price(Plan.of(outside=("visionzip", 0.5), prefill=("fastv", 0.5)), TWO) == pytest.approx(927)

    def test_windows_run_a_layer_anew_that_was_run_for_its_features(self):
        plan = Plan.of(prefill=("video_xl", 0.5))
        offers = Portfolio("windows", {"prefill": (plan["prefill"],)}, max_active_stages=1)

        class Layered(Round):
            decoder_depth = 4

            def forecast(self, plan, shape, new_tokens=0, turns=1):
                entries = [("prefill", "layers", 800, "matrix"), ("prefill", "layers", 40, "other"), ("encoder",) * 4]
                return SimpleNamespace(total=500 if plan.active else 1000, entries=entries)

        m = Masks(Layered(), ActionTable.from_portfolio(offers), 0, {"layer1": 3.0})
        assert m.price(plan, ONE) == 500 + 3 + (800 + 40) / 4 and m.price(UNCOMPRESSED, ONE) == 1000 + 3
        assert Masks(Layered(), m.table, 0).price(plan, ONE) == 500  # nothing is looked at

    def test_words_between_visual_tokens_tell_rows_apart_that_are_alike_otherwise(self):
        class Whole(Round):
            def forecast(self, plan, shape, new_tokens=0, turns=1):
                if plan["prefill"].method == "fastv" and shape.before is None:
                    raise ValueError("fastv: here words stand between")
                return SimpleNamespace(total=1000 * shape.n_text + (shape.before or 0))

        m, plan = Masks(Whole(), TABLE, 0), Plan.of(prefill=("fastv", 0.5))
        apart, behind = replace(THREE, before=None), replace(THREE, before=2)
        assert apart == THREE == behind
        assert legal(m.free("prefill", UNCOMPRESSED, behind), "prefill") == {"none", "fastv"}
        assert legal(m.free("prefill", UNCOMPRESSED, apart), "prefill") == {"none"}
        assert m.price(plan, THREE) == 3000 and m.price(plan, behind) == 3002

    def test_feature_costs_may_depend_on_the_length_of_the_prompt(self):
        m = masks(lambda shape: {"encoder": 10.0 * shape.n_text})
        assert m.price(UNCOMPRESSED, ONE) == 1000 + 10 and m.price(UNCOMPRESSED, THREE) == 3000 + 30

    @pytest.mark.parametrize(
        "budget, expected",
        [
            (999, {"blind", "downsample", "none"}),  # none, then visionzip (600) or fastv (750)
            (450, {"blind", "downsample", "none"}),  # none only by visionzip and fastv together: 450
            (449, {"blind", "downsample"}),  # downsample and fastv: 375
            (374, {"blind"}),
        ],
    )
    def test_an_action_is_legal_iff_some_completion_is_within_the_budget(self, budget, expected):
        assert legal(masks().mask("input", UNCOMPRESSED, ONE, budget), "input") == expected

    def test_a_budget_below_the_cheapest_plan_names_it(self):
        with pytest.raises(ValueError, match="budget of 99 FLOPs is below the cheapest plan, blind at 100"):
            masks().mask("input", UNCOMPRESSED, ONE, 99)
        assert masks().least(THREE) == pytest.approx(300)

    def test_forecasts_are_remembered_by_prompt_length(self):
        m = masks()
        m.mask("input", UNCOMPRESSED, ONE, 500)
        asked = m.host.asked
        m.mask("input", UNCOMPRESSED, ONE, 300)
        m.mask("outside", UNCOMPRESSED, ONE, 700)
        assert m.host.asked == asked

    def test_what_is_legal_hangs_on_the_grids_of_a_row(self):
        m = masks()
        large = PromptShape(1, ((1, 3, 5), (1, 3, 5)))
        after = Plan.of(input=("downsample", 0.5))
        assert legal(m.free("outside", after, large), "outside") == {"none"}
        asked = m.host.asked
        m.free("outside", after, PromptShape(7, large.grids))  # words change nothing
        assert m.host.asked == asked
        m.free("outside", after, PromptShape(7, ((1, 9, 9),)))
        assert m.host.asked > asked


def episode(lam=0.5, budget=None, m=None):
    given = Input("x#0", np.full((8, 8, 3), 128, np.uint8), "what ?", ("a",), "regime", "family", "t", "test")
    return Episode.begin(m or masks(), given, ONE, lam, budget)


class TestEpisode:
    def test_stages_with_one_action_pass_by_themselves(self):
        e = episode()
        stops = []
        while not e.done:
            stops.append(e.stage)
            e.act((0, 0))
        assert stops == ["input", "outside", "prefill"] and e.plan == UNCOMPRESSED

    def test_what_the_budget_forces_is_not_asked(self):
        e = episode(budget=0.45)  # none at the input leaves visionzip and fastv together as the only way
        e.act((0, 0))
        assert e.done and e.plan == Plan.of(outside=("visionzip", 0.5), prefill=("fastv", 0.5))

    def test_an_episode_without_any_choice_stops_at_the_input(self):
        e = episode(budget=0.1)
        assert e.stage == "input" and e.mask().sum() == 1 and e.plan == UNCOMPRESSED
        e.act(np.argwhere(e.mask())[0])
        assert e.done and e.plan == BLIND

    def test_the_observation_shows_what_is_known_and_is_fresh_each_time(self):
        layout = Layout.of({"block1": ("a",), "encoder": ("b", "c"), "layer1": ("d",)})
        e = episode(lam=10.0, budget=0.8)
        e.groups["encoder"] = np.array([0.25, 0.5], np.float32)
        e.spent, e.tokens_left = 200.0, 0.5
        one, two = e.observe(layout), e.observe(layout)
        head = dict(zip(HEAD, one["vector"], strict=False))
        assert (
            head["log_lambda"] == 0.5
            and head["budget_left"] == pytest.approx(0.6)
            and head["spent"] == pytest.approx(0.2)
        )
        assert head["tokens_left"] == 0.5 and head["stage_input"] == 1 and head["turns"] == 0
        assert one["vector"] is not two["vector"] and one["mask"] is not two["mask"] and one["mask"].dtype == np.int8
        assert set(group_vectors(layout, one["vector"])) == {"pixels", "question", "encoder"}
        assert group_vectors(layout, one["vector"])["encoder"].tolist() == [0.25, 0.5]

    def test_costs_are_paid_as_they_are_spent(self):
        e = episode()
        e.spent = 250.0
        assert e.pay() == 0.25 and e.pay() == 0.0
        e.spent = 1000.0
        assert e.pay() == 0.75

    def test_an_illegal_action_names_its_reason_and_changes_nothing(self):
        e = episode(budget=0.449)
        with pytest.raises(ValueError, match=r"input: action \(0, 0\), none@1.0, is not legal: every way to go on"):
            e.act((0, 0))
        assert e.at == 0
        e.act(TABLE.encode(Choice("downsample", 0.5), "input"))
        with pytest.raises(ValueError, match="the episode is over"):
            e.act((0, 0))

    def test_terms_draw_within_their_ranges(self):
        terms, rng = Terms(lam=(0.1, 10.0), budget=(0.2, 0.6), budget_share=0.5), np.random.default_rng(0)
        lams = np.array([terms.draw_lambda(rng) for _ in range(2000)])
        assert 0.1 <= lams.min() and lams.max() <= 10 and np.median(lams) == pytest.approx(1.0, rel=0.15)
        budgets = [terms.draw_budget(rng, 0.3) for _ in range(2000)]
        given = [b for b in budgets if b is not None]
        assert 0.45 < len(given) / 2000 < 0.55 and min(given) == 0.3 and max(given) <= 0.6
