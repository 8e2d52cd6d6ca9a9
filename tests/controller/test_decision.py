"""The decision: the network's choice on known ground, the safe one everywhere else, never an exception."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foveate.controller import Controller, Decision, Normalisation, Progress, save
from foveate.controller.network import pick
from foveate.plans.plan import STAGES

pytestmark = pytest.mark.fast


@pytest.fixture
def controller(make_artefact):
    return Controller(make_artefact("policy"))


@pytest.fixture
def observation(controller, groups):
    """A good one, before the `outside` decision."""
    artefact = controller.artefact
    vector = artefact.layout.assemble("outside", 0.3, Progress(spent=0.1, tokens_left=0.5), groups)
    return {"vector": vector, "mask": artefact.table.legal("outside")}


class TestKnownGround:
    def test_the_action_is_the_networks_best_legal_one(self, controller, observation):
        artefact = controller.artefact
        scores = artefact.network(artefact.normalisation(observation["vector"]))
        expected = pick("policy", scores, observation["mask"], 0.3)
        assert controller.decide(observation) == Decision(*expected, "policy")
        assert observation["mask"][expected] and controller.counters == {"policy": 1}

    def test_every_stage_gets_an_action_that_the_table_knows(self, controller, groups):
        seen = set()
        for stage in STAGES:
            for spent in np.linspace(0, 1, 20):
                mask = np.ones(controller.artefact.network.shape, bool)  # wider than the stage offers
                decision = controller.decide_stop(stage, groups, Progress(spent=spent), mask)
                choice = controller.choice(stage, decision)
                assert decision.reason == "policy" and (stage, choice.method) in {
                    *controller.artefact.table.methods,
                    (stage, "none"),
                }
                seen.add(choice.method)
        assert len(seen) > 1  # otherwise this random policy tests nothing

    def test_a_stop_decides_as_its_assembled_observation(self, controller, observation, groups):
        progress = Progress(spent=0.1, tokens_left=0.5)
        assert controller.decide_stop("outside", groups, progress, observation["mask"]) == controller.decide(
            observation
        )

    @pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.float32])
    def test_a_mask_of_zeros_and_ones_may_have_any_number_type(self, controller, observation, dtype):
        expected = controller.decide(observation)
        assert controller.decide({**observation, "mask": observation["mask"].astype(dtype)}) == expected

    def test_decisions_repeat_across_calls_files_and_threads(self, controller, observation, tmp_path):
        save(tmp_path / "a.fov", controller.artefact)
        again = Controller.load(tmp_path / "a.fov", fingerprint=controller.artefact.fingerprint)
        expected = controller.decide(observation)
        with ThreadPoolExecutor(4) as pool:
            decisions = list(pool.map(again.decide, [observation] * 400))
        assert set(decisions) == {expected} and again.counters == {"policy": 400}

    def test_the_observation_is_left_alone(self, controller, observation):
        before = {key: values.copy() for key, values in observation.items()}
        controller.decide(observation)
        assert all(np.array_equal(observation[key], before[key]) for key in before)

    def test_whole_plans_are_rows_of_one_level(self, make_artefact, groups):
        artefact = make_artefact("regression", whole_plans=True)
        controller = Controller(artefact)
        mask = np.ones((4, 1), bool)
        vector = artefact.layout.assemble("input", 2.0, Progress(), groups)
        quality, cost = artefact.network(artefact.normalisation(vector))
        decision = controller.decide({"vector": vector, "mask": mask})
        assert decision == Decision(int((quality - 2.0 * cost).argmax()), 0, "regression")
        assert controller.plan(decision) == artefact.plans[decision.method]
        with pytest.raises(ValueError, match="ask plan"):
            controller.choice("input", decision)

    def test_a_regression_reads_lambda_from_the_observation(self, make_artefact, groups):
        artefact = make_artefact("regression", whole_plans=True, layers=0)
        heads = {"quality": [1.0, 0.9, 0.5, 0.0], "cost": [1.0, 0.4, 0.1, 0.0]}
        for name, values in heads.items():
            artefact.network.arrays[f"{name}.weight"][:] = 0
            artefact.network.arrays[f"{name}.bias"][:] = values
        controller, rows = Controller(artefact), []
        for lam in (0.01, 0.16, 0.17, 1.3, 1.4, 4.9, 5.1, 100.0):  # around the slopes 1/6, 4/3 and 5
            vector = artefact.layout.assemble("input", lam, Progress(), groups)
            rows.append(controller.decide({"vector": vector, "mask": np.ones((4, 1), bool)}).method)
        assert rows == [0, 0, 1, 1, 2, 2, 3, 3]


class TestSafety:
    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 6, 13, 50, -1])
    def test_one_nan_or_infinity_anywhere_gives_no_compression(self, controller, observation, poison, place):
        observation["vector"][place] = poison
        assert controller.decide(observation) == Decision(0, 0, "nan")
        assert controller.counters == {"nan": 1}

    def test_a_mask_without_a_legal_action_gives_no_compression(self, controller, observation):
        observation["mask"][:] = False
        assert controller.decide(observation) == Decision(0, 0, "mask")

    @pytest.mark.parametrize(
        "mask",
        [
            np.ones((5, 4), bool),
            np.ones(25, bool),
            np.full((5, 5), np.nan, np.float32),
            np.full((5, 5), 2),
            np.full((5, 5), "x"),
            [[True] * 5] * 5,
            None,
        ],
        ids=["narrow", "flat", "nan", "two", "text", "list", "none"],
    )
    def test_an_unreadable_mask_gives_no_compression(self, controller, observation, mask):
        assert controller.decide({**observation, "mask": mask}) == Decision(0, 0, "mask")

    @pytest.mark.parametrize(
        "vector",
        [np.zeros(86, np.float32), np.zeros((1, 87), np.float32), np.zeros(87, object), np.zeros(87, int), None, "x"],
        ids=["short", "batch", "object", "integer", "none", "text"],
    )
    def test_features_of_another_shape_or_type_give_no_compression(self, controller, observation, vector):
        assert controller.decide({**observation, "vector": vector}) == Decision(0, 0, "shape")

    @pytest.mark.parametrize("missing", ["vector", "mask"])
    def test_a_missing_entry_gives_no_compression(self, controller, observation, missing):
        del observation[missing]
        assert controller.decide(observation) == Decision(0, 0, "error")

    def test_a_picture_beyond_the_training_range_gives_no_compression(self, controller, make_artefact, observation):
        revealed = np.flatnonzero(controller.artefact.layout.revealed(observation["vector"]))
        assert revealed.size == 68
        for count, reason in ((6, "policy"), (7, "outside")):  # a tenth of 68 is 6.8
            far = observation["vector"].copy()
            far[revealed[-count:]] = 2.5
            assert controller.decide({**observation, "vector": far}).reason == reason
        strict = Controller(make_artefact("policy", outside_limit=0.0))
        far = observation["vector"].copy()
        far[revealed[0]] = -1.5
        assert strict.decide({**observation, "vector": far}) == Decision(0, 0, "outside")

    def test_the_head_is_no_ground_for_doubt(self, controller, make_artefact, observation):
        norm = controller.artefact.normalisation
        low, high = norm.low.copy(), norm.high.copy()
        low[:12], high[:12] = 0.5, 0.5  # as if training had seen one stage and one dial
        narrow = make_artefact(
            "policy", normalisation=Normalisation(norm.mean, norm.scale, low, high), outside_limit=0.0
        )
        assert Controller(narrow).decide(observation).reason == "policy"

    def test_a_hard_budget_is_kept_even_by_the_safe_action(self, controller, observation):
        observation["mask"] = np.zeros((5, 5), bool)
        observation["mask"][3, 2] = observation["mask"][2, 3] = observation["mask"][4, 2] = True
        observation["vector"][20] = np.nan
        assert controller.decide(observation) == Decision(3, 2, "nan")  # mildest level first, then the lower row

    def test_a_network_that_fails_or_answers_nan_gives_no_compression(self, make_artefact, observation):
        def broken(_):
            raise RuntimeError("device lost")

        def lost(_):
            return np.full(5, np.nan, np.float32), np.zeros((5, 5), np.float32)

        for network, reason in ((broken, "error"), (lost, "nan")):
            assert Controller(make_artefact(), network=network).decide(observation) == Decision(0, 0, reason)

    @pytest.mark.parametrize(
        ("stage", "change", "progress", "lam"),
        [
            ("nowhere", {}, Progress(), None),
            ("outside", {"pixels": np.zeros(3)}, Progress(), None),
            ("outside", {"extra": np.zeros(3)}, Progress(), None),
            ("outside", {"pixels": "x"}, Progress(), None),
            ("outside", {}, None, None),
            ("outside", {}, Progress(), float("nan")),
        ],
    )
    def test_a_stop_that_cannot_be_assembled_gives_no_compression(
        self, controller, groups, stage, change, progress, lam
    ):
        mask = controller.artefact.table.legal("outside")
        decision = controller.decide_stop(stage, {**groups, **change}, progress, mask, lam)
        assert decision == Decision(0, 0, "shape") and decision.safe

    def test_a_video_is_outside_what_a_controller_for_pictures_has_seen(self, controller, groups):
        mask = controller.artefact.table.legal("outside")
        decision = controller.decide_stop("outside", {**groups, "pixels": np.zeros(29)}, Progress(), mask)
        assert decision == Decision(0, 0, "outside") and controller.counters == {"outside": 1}

    def test_every_decision_is_counted_once(self, controller, observation):
        poisoned = {**observation, "vector": observation["vector"] * np.nan}
        for item in (observation, poisoned, observation, {}, {**observation, "mask": None}):
            controller.decide(item)
        assert controller.counters == {"policy": 2, "nan": 1, "error": 1, "mask": 1}


class TestDials:
    def test_without_a_dial_the_artefacts_lambda_holds(self, controller):
        assert controller.lam == 0.3

    def test_a_budget_becomes_lambda_by_the_calibration(self, make_artefact):
        assert Controller(make_artefact(), budget=0.6).lam == pytest.approx(0.1)
        assert Controller(make_artefact(), lam=0.05).lam == 0.05

    def test_a_request_may_carry_its_own_dial(self, controller, groups, monkeypatch):
        seen = []
        monkeypatch.setattr(controller, "_network", lambda z: (seen.append(z), controller.artefact.network(z))[1])
        mask = controller.artefact.table.legal("outside")
        for lam in (None, controller.dial(budget=0.9)):
            controller.decide_stop("outside", groups, Progress(), mask, lam)
        assert seen[0][6] > seen[1][6] and np.array_equal(np.delete(seen[0], 6), np.delete(seen[1], 6))  # 6: log_lambda
        assert controller.lam == 0.3

    @pytest.mark.parametrize(
        ("dial", "message"),
        [
            ({"lam": 0.1, "budget": 0.5}, "lam or budget, not both"),
            ({"lam": 2.0}, r"lam: 2.0 is outside the calibrated range 0.01 .. 1"),
            ({"lam": float("nan")}, "lam: nan"),
            ({"budget": 0.05}, "budget: 0.05 is below the lowest calibrated mean cost 0.2"),
        ],
    )
    def test_a_dial_that_cannot_be_kept_is_refused_when_it_is_set(self, make_artefact, dial, message):
        with pytest.raises(ValueError, match=message):
            Controller(make_artefact(), **dial)

    def test_without_a_calibration_any_positive_lambda_goes_and_no_budget(self, make_artefact):
        bare = make_artefact(calibration=())
        assert Controller(bare, lam=50.0).lam == 50.0
        with pytest.raises(ValueError, match="without a calibration"):
            Controller(bare, budget=0.5)
        with pytest.raises(ValueError, match="lam: 0.0"):
            Controller(bare, lam=0.0)
