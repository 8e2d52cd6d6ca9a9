"""Masks and stops, as environments name them; serving needs them too, so they live with the hosts."""

from foveate.models.masks import (
    ANSWER_TOKENS,
    STOP_GROUP,
    FeatureCost,
    Forecaster,
    Masks,
    feature_flops,
    features_total,
)

__all__ = [
    "ANSWER_TOKENS",
    "STOP_GROUP",
    "FeatureCost",
    "Forecaster",
    "Masks",
    "feature_flops",
    "features_total",
]
