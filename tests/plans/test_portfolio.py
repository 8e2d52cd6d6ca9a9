"""Portfolios: the shipped ones, errors that name file, line and field, and the plans that they span."""

import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from foveate.plans.files import FieldError
from foveate.plans.plan import BLIND, NONE, STAGES, UNCOMPRESSED, Choice, Plan, keep_count
from foveate.plans.portfolio import ActionTable, Portfolio, all_plans, one_stage_plans

pytestmark = pytest.mark.fast

KNOWN = {("outside", "visionzip"), ("outside", "random"), ("prefill", "fastv"), ("input", "downsample")}


def portfolio(max_active_stages=2, **stages):
    return Portfolio.from_dict({"version": 1, "name": "own", "max_active_stages": max_active_stages, "stages": stages})


def test_the_default_portfolio_offers_what_it_lists():
    default = Portfolio.from_yaml("default")
    keeps = {}
    for stage, choices in default.choices.items():
        for choice in choices:
            keeps.setdefault((stage, choice.method), []).append(choice.keep)
    assert keeps == {
        ("input", "blind"): [0.0],
        ("input", "downsample"): [0.75, 0.5, 0.25, 0.11],
        ("encoder", "tome"): [0.75, 0.5, 0.25],
        ("outside", "diversity"): [0.5, 0.25, 0.11, 0.06],
        ("outside", "random"): [0.5, 0.25],
        ("outside", "stride"): [0.5, 0.25],
        ("outside", "tome"): [0.5, 0.25, 0.11],
        ("outside", "visionzip"): [0.5, 0.25, 0.11, 0.06],
        ("projector", "average_pool"): [0.5, 0.25, 0.11, 0.06],
        ("prefill", "fastv"): [0.5, 0.25, 0.11],
        ("prefill", "pyramiddrop"): [0.5, 0.25, 0.11],
        ("decode", "look_m"): [0.5, 0.25],
    }
    assert default.max_active_stages == 2


def test_the_default_ratios_are_the_counts_that_its_file_states():
    assert [keep_count(144, keep) for keep in (0.75, 0.5, 0.25, 0.11, 0.06)] == [108, 72, 36, 16, 9]


def test_the_tiny_portfolio_has_six_choices():
    assert sum(len(choices) for choices in Portfolio.from_yaml("tiny").choices.values()) == 6


def test_a_shipped_portfolio_is_found_by_name_and_by_its_path_under_configs():
    assert Portfolio.from_yaml("tiny") == Portfolio.from_yaml("portfolios/tiny.yaml")
    with pytest.raises(FileNotFoundError, match="no file 'tinny'.*near: tiny"):
        Portfolio.from_yaml("tinny")


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_a_portfolio_survives_json_sorted_or_not(name):
    shipped = Portfolio.from_yaml(name)
    assert Portfolio.from_dict(json.loads(json.dumps(shipped.to_dict(), sort_keys=True))) == shipped
    assert pickle.loads(pickle.dumps(shipped)) == shipped


def test_the_order_in_the_file_does_not_matter():
    one = portfolio(prefill={"fastv": [0.25, 0.5]}, outside={"tome": [0.5], "random": [0.5]})
    other = portfolio(outside={"random": [0.5], "tome": [0.5]}, prefill={"fastv": [0.5, 0.25]})
    assert one == other
    assert one.choices["prefill"] == (Choice("fastv", 0.5), Choice("fastv", 0.25))
    assert one.choices["decode"] == ()


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (5, "  outsid: {visionzip: [0.5]}", "stages.outsid: unknown stage; near: outside"),
        (5, "  outside: {visonzip: [0.5]}", "stages.outside.visonzip: unknown method at outside; near: visionzip"),
        (5, "  prefill: {visionzip: [0.5]}", "stages.prefill.visionzip: unknown method at prefill; near: fastv"),
        (5, "  outside: {random: [0.5, 1.5]}", r"stages.outside.random.1: random: keep = 1.5 is outside \(0, 1\]"),
        (5, "  outside: {random: ['0.5']}", "stages.outside.random.0: random: keep = '0.5' is not a number"),
        (5, "  outside: {random: [1.0]}", "keep 1.0 is none, which is always legal and not listed"),
        (5, "  outside: {random: [0.5, 0.50]}", "stages.outside.random.1: keep 0.5 is given twice"),
        (5, "  outside: {random: 0.5}", "stages.outside.random: must be a list of keep ratios; got 0.5"),
        (5, "  outside: {random: []}", "must be a list of keep ratios"),
        (5, "  outside:", "stages.outside: must map methods"),
        (5, "  input: {blind: [0.5]}", "blind: keep = 0.5 must be 0"),
        (6, "  outside: {random: [0.5]}\n  outside: {visionzip: [0.5]}", "key 'outside' is given twice"),
        (6, "  outside: {random: [0.5]}\nstage: {}", "stage: unknown key; near: stages"),
        (6, "  outside: {random: [0.5]}\n  prefill: {fastv: [0.5, }", "not YAML: "),
        (4, "  {}", "stages: no choice is offered at any stage"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_line_and_field(tmp_path, line, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"# mine\nversion: 1\nname: own\nstages:\n{text}\n")
    with pytest.raises(ValueError, match=message) as caught:
        Portfolio.from_yaml(path, KNOWN)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("version: 2\nname: own", "version: version 2 is unknown; known: 1"),
        ("name: own", "version: version None is unknown"),
        ("version: 1", "name: must be a text; got None"),
        ("version: 1\nname: own\nmax_active_stages: 7", r"max_active_stages: must be a whole number in 1\.\.6; got 7"),
        ("version: 1\nname: own\nmax_active_stages: yes", "max_active_stages: .* got True"),
    ],
)
def test_a_wrong_head_names_its_key(tmp_path, head, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"{head}\nstages: {{outside: {{random: [0.5]}}}}\n")
    with pytest.raises(ValueError, match=message):
        Portfolio.from_yaml(path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"own.yaml:1: a portfolio maps version, name, max_active_stages, stages"):
        Portfolio.from_yaml(path)


def test_bytes_that_are_no_text_and_aliases_that_bite_their_tail_are_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="own.yaml"):
        Portfolio.from_yaml(path)
    path.write_text("version: 1\nname: own\nstages: &a {outside: *a}\n")
    with pytest.raises(ValueError, match="own.yaml:3: stages.outside"):
        Portfolio.from_yaml(path)


def test_blind_needs_no_registry_entry_and_stands_at_input_only():
    data = {"version": 1, "name": "own", "stages": {"input": {"blind": [0]}}}
    assert Portfolio.from_dict(data, KNOWN).choices["input"] == (Choice("blind", 0.0),)
    with pytest.raises(ValueError, match="blind is a choice at input only"):
        portfolio(outside={"blind": [0.0]})


def test_a_field_error_survives_pickling():
    error = pickle.loads(pickle.dumps(FieldError(("stages", "outside"), "is odd")))
    assert (str(error), error.keys) == ("stages.outside: is odd", ("stages", "outside"))


def test_a_portfolio_built_in_code_is_checked_too():
    with pytest.raises(ValueError, match="outside: none .* is always legal"):
        Portfolio("own", {"outside": (NONE,)})
    with pytest.raises(ValueError, match="unknown stage 'middle'"):
        Portfolio("own", {"middle": (Choice("tome", 0.5),)})
    with pytest.raises(ValueError, match="offers no choice"):
        Portfolio("own", {})
    with pytest.raises(ValueError, match=r"max_active_stages = 0 is outside 1\.\.6"):
        Portfolio("own", {"outside": (Choice("tome", 0.5),)}, 0)


def test_the_tiny_portfolio_spans_fifteen_plans():
    # 1 uncompressed, 1 blind, 5 single choices (1 input, 2 outside, 2 prefill), 1*2 + 1*2 + 2*2 pairs
    plans = all_plans(Portfolio.from_yaml("tiny"))
    assert len(plans) == len(set(plans)) == 15
    assert plans[0] == UNCOMPRESSED and BLIND in plans


def test_the_default_portfolio_spans_461_plans():
    # without blind the stages have 4, 3, 15, 4, 6, 2 choices: pairs = (34^2 - (16+9+225+16+36+4)) / 2 = 425
    assert len(all_plans(Portfolio.from_yaml("default"))) == 1 + 35 + 425


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_all_plans_agrees_with_filtering_the_whole_product(most):
    own = portfolio(
        most, input={"blind": [0], "downsample": [0.5]}, outside={"random": [0.5, 0.25]}, decode={"x": [0.5]}
    )
    slow = set()
    for choices in itertools.product(*((NONE, *own.choices[stage]) for stage in STAGES)):
        active = [choice for choice in choices if choice != NONE]
        if len(active) <= most and (choices[0].method != "blind" or len(active) == 1):
            slow.add(Plan(choices))
    plans = all_plans(own)
    assert set(plans) == slow and len(plans) == len(slow)


def test_one_stage_plans_are_both_ends_and_each_choice_once():
    plans = one_stage_plans(Portfolio.from_yaml("tiny"))
    assert [plan.label() for plan in plans] == [
        "none",
        "blind",
        "input:downsample@0.25",
        "outside:visionzip@0.25",
        "outside:visionzip@0.11",
        "prefill:fastv@0.5",
        "prefill:fastv@0.25",
    ]
    assert one_stage_plans(portfolio(decode={"look_m": [0.5]}))[1] == BLIND


class TestActionTable:
    table = ActionTable.from_portfolio(Portfolio.from_yaml("tiny"))

    def test_rows_and_levels_are_in_one_fixed_order(self):
        assert self.table.methods == (
            ("*", "none"),
            ("input", "blind"),
            ("input", "downsample"),
            ("outside", "visionzip"),
            ("prefill", "fastv"),
        )
        assert self.table.ratios == (1.0, 0.5, 0.25, 0.11, 0.0)
        assert self.table.levels == ((0,), (4,), (2,), (2, 3), (1, 2))
        assert self.table.shape == (5, 5)

    def test_each_stage_offers_its_own_rows_and_none(self):
        expected = np.zeros((5, 5), dtype=bool)
        expected[0, 0] = expected[3, 2] = expected[3, 3] = True
        np.testing.assert_array_equal(self.table.legal("outside"), expected)
        assert np.argwhere(self.table.legal("encoder")).tolist() == [[0, 0]]
        with pytest.raises(ValueError, match="unknown stage 'prefil'; near: prefill"):
            self.table.legal("prefil")

    @pytest.mark.parametrize("name", ["tiny", "default"])
    def test_encode_and_decode_are_inverse_wherever_an_action_is_legal(self, name):
        table = ActionTable.from_portfolio(Portfolio.from_yaml(name))
        for stage in STAGES:
            for m, r in np.argwhere(table.legal(stage)):
                assert table.encode(table.decode(stage, m, r), stage) == (m, r)
        own = Portfolio.from_yaml(name)
        for stage, choices in own.choices.items():
            for choice in choices:
                assert table.decode(stage, *table.encode(choice, stage)) == choice

    def test_none_is_row_zero_at_every_stage(self):
        assert [self.table.encode(NONE, stage) for stage in STAGES] == [(0, 0)] * 6
        assert self.table.decode("decode", 0, 0) == NONE

    def test_what_is_not_on_offer_is_refused(self):
        with pytest.raises(
            ValueError, match="outside: visionzip@0.5 is not on offer; on offer: none@1.0, visionzip@0.25"
        ):
            self.table.encode(Choice("visionzip", 0.5), "outside")
        with pytest.raises(ValueError, match=r"outside: action \(4, 1\) is not on offer"):
            self.table.decode("outside", 4, 1)
        with pytest.raises(ValueError, match=r"outside: action \(-1, 2\) is not on offer"):
            self.table.decode("outside", -1, 2)

    def test_it_survives_json_with_sorted_keys(self):
        again = ActionTable.from_dict(json.loads(json.dumps(self.table.to_dict(), sort_keys=True)))
        assert again == self.table and again.max_active_stages == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"methods": [["outside", "tome"]]}, "row 0 must be none"),
            ({"ratios": [1.0, 0.25, 0.5, 0.11, 0.0]}, "ratios must fall"),
            ({"levels": [[0], [4], [2], [2, 3]]}, "each row must be given once"),
            ({"levels": [[0], [4], [2], [2, 9], [1, 2]]}, r"outside:visionzip has levels \(2, 9\), outside 1..4"),
            ({"levels": [[0], [1], [2], [2, 3], [1, 2]]}, "blind: keep = 0.5 must be 0"),
            ({"max_active_stages": 9}, "max_active_stages = 9"),
            ({"ratios": None}, "action table: TypeError"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            ActionTable.from_dict(self.table.to_dict() | change)


def test_importing_plans_needs_neither_yaml_nor_torch():
    code = (
        "import sys; sys.modules['yaml'] = sys.modules['torch'] = None\n"
        "import foveate.plans, foveate.plans.cost\n"
        "print(foveate.plans.Plan.of(outside=('tome', 0.5)).label())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "outside:tome@0.5", done.stderr
