"""Where the parts of a model lie: on one device, or over several as accelerate places them.

A decoder layer runs where accelerate put it, and its cache stays there; what it reads is brought to it. Layers may also
lie on the CPU or the disk and be fetched for each use. All other parts must have a device of their own, since their
weights are read outside their `forward`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from foveate.models.errors import UnsupportedModel

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""How accelerate may spread a model over the devices that it finds."""

FETCHED = re.compile(r"(language_model|text_model)\.layers\.[1-9]")
"""Names of the weights that may be put away: the first layer's attention is looked at from outside."""

Device = str | Mapping[str, int | str]
"""A torch device, one of `STRATEGIES`, or a device map: name of a module -> device, "cpu" or "disk"."""


def spread(device: Device) -> bool:
    """Whether accelerate has to place the model."""
    return not isinstance(device, str) or device in STRATEGIES


def device_of(module: nn.Module) -> torch.device:
    """Where a module runs: as its accelerate hook says, else where its weights lie."""
    hooked = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if hooked is None:
        return next(module.parameters()).device
    return torch.device("cuda", hooked) if isinstance(hooked, int) else torch.device(hooked)


def check_placed(model: nn.Module, name: str) -> None:
    """Refuses a placement that hosts cannot run. Raises: UnsupportedModel, naming the first such weight."""
    for key, value in model.named_parameters():
        if value.device.type == "meta" and not FETCHED.search(key):
            raise UnsupportedModel(
                f"{name}: the device map puts {key!r} away; only language layers behind the first can be fetched"
            )


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all parameters and saved buffers; a layer that is put away is there until the next is asked
    for."""
    for prefix, module in model.named_modules():
        with align_module_device(module):
            buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
            for name, value in {**module._parameters, **buffers}.items():
                if value is not None:
                    yield f"{prefix}.{name}" if prefix else name, value.detach()
