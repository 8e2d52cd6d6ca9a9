"""Masks and stops, as environments name them; serving needs them too, so they live with the hosts."""

from foveate.models.masks import ANSWER_TOKENS, STOP_GROUP, Forecaster, Masks

__all__ = ["ANSWER_TOKENS", "STOP_GROUP", "Forecaster", "Masks"]
