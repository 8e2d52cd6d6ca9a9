"""The models that the package brings, by name."""

from __future__ import annotations

from pathlib import Path

from foveate.models import reference, reference_video
from foveate.models.errors import UnsupportedModel

EMBEDDED = {"reference": reference.WEIGHTS, "reference-video": reference_video.WEIGHTS}


def embedded(model: str | Path) -> Path | None:
    """The folder of an embedded model; None = no such name.

    Raises:
        UnsupportedModel: its weights are not there yet; the line says how to make them.
    """
    folder = EMBEDDED.get(str(model))
    if folder is not None and not (folder / "config.json").is_file():
        recipe = f"python -m foveate.models.{folder.parent.name}.train"
        raise UnsupportedModel(f"model {str(model)!r}: no weights in {folder}; make them with: {recipe}")
    return folder
