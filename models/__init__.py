"""Hosts: multimodal models opened stage by stage; the only place that touches the insides of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from foveate.models.families import FAMILIES

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.placing import Device

__all__ = ["FAMILIES", "load_host"]


def load_host(
    model: str | Path, dtype: str = "float32", device: Device = "cpu", learned: str | Path | None = None
) -> Host:
    """Opens a model.

    Args:
        model: "reference" or "reference-video" (the embedded models), a folder as `save_pretrained` writes it, or a
            hub id. A `text_tower/` folder beside the weights of a local model is opened with it.
        dtype: a floating-point torch dtype, such as "float32" or "bfloat16".
        device: as torch writes it; "auto", "balanced" or "sequential" to let accelerate spread the model over what it
            finds; or a device map (module -> device, "cpu" or "disk").
        learned: folder with weights of learned methods, as `foveate distill` writes them. None = the model's own: in
            the package for its own models, `foveate/` in a local folder, else `~/.cache/foveate/FINGERPRINT/`; what
            does not fit there is passed over.
    Raises:
        WrongWeights: a file in `learned` is broken or made for another model.
        UnsupportedModel: nothing to load there, weights missing, or a family that no host here knows; one line says
            which.
    """
    from foveate.models.loading import load  # keeps `import foveate.models` free of torch

    return load(model, dtype, device, learned)
