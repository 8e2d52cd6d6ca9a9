"""What ships: a trained policy as one file, and the numpy code that turns features into a compression decision.

Importing this package needs numpy alone: no torch, no YAML, no training library.
"""

from foveate.controller.artefact import Artefact, ControllerError, load, save
from foveate.controller.decision import Controller, Decision
from foveate.controller.features import (
    PIXEL_FEATURES,
    QUESTION_FEATURES,
    pixel_features,
    question_features,
)
from foveate.controller.motion import TIME_FEATURES, shown_features, time_features
from foveate.controller.network import Network, Normalisation
from foveate.controller.observation import Layout, Progress

__all__ = [
    "PIXEL_FEATURES",
    "QUESTION_FEATURES",
    "TIME_FEATURES",
    "Artefact",
    "Controller",
    "ControllerError",
    "Decision",
    "Layout",
    "Network",
    "Normalisation",
    "Progress",
    "load",
    "pixel_features",
    "question_features",
    "save",
    "shown_features",
    "time_features",
]
