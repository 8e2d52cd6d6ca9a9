import re
from dataclasses import dataclass

import pytest

import foveate.compressors  # noqa: F401  (fills the registry)
from foveate.compressors.base import Selector
from foveate.compressors.registry import COMPRESSORS, make, register

pytestmark = pytest.mark.fast


def test_a_duplicate_is_refused_and_both_modules_are_named():
    @dataclass(frozen=True)
    class Other(Selector):
        name, stages = "fastv", ("prefill",)

        def score(self, tokens):
            return tokens.size

    with pytest.raises(ValueError, match=rf"\(prefill, fastv\).*prefill\.fastv and by {re.escape(__name__)}"):
        register(Other)
    assert COMPRESSORS["prefill", "fastv"].__name__ == "FastV"


def test_registering_a_class_twice_is_no_duplicate():
    assert register(COMPRESSORS["prefill", "fastv"]) is COMPRESSORS["prefill", "fastv"]


def test_an_unknown_stage_is_refused():
    @dataclass(frozen=True)
    class Lost(Selector):
        name, stages = "lost", ("before",)

        def score(self, tokens):
            return tokens.size

    with pytest.raises(ValueError, match="unknown stage 'before'; known: input, encoder"):
        register(Lost)


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match="no compressor 'fastvv' at stage 'prefill'; near: fastv"):
        make("prefill", "fastvv")


def test_an_unknown_name_without_near_ones_lists_those_of_the_stage():
    with pytest.raises(ValueError, match=r"near: .*visionzip"):
        make("outside", "qqqq")


def test_hyperparameters_reach_the_method():
    assert make("prefill", "fastv", layer=(3, 28)).layer == (3, 28)
