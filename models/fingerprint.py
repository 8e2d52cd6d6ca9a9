"""Which model this is: a digest of its configuration and of a sample of its weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from foveate.models.placing import weights

VOLATILE = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")
SAMPLE = 32
"""Values taken from each tensor, evenly spaced."""


def fingerprint(config: dict[str, Any], model: nn.Module) -> str:
    """SHA-256 (hex) over a configuration and names, shapes and sampled values of the weights.

    Values are rounded to bfloat16 first, and fields that loading or saving changes are left out: dtype of a load and
    version of the library do not matter.

    Args:
        config: the content of config.json.
        model: with its weights.
    """
    digest = hashlib.sha256(json.dumps(_stable(config), sort_keys=True).encode())
    told = {name: f"{tuple(value.shape)}".encode() + _sample(value) for name, value in weights(model)}
    for name, rest in sorted(told.items()):
        digest.update(name.encode() + rest)
    return digest.hexdigest()


def _sample(value: Tensor) -> bytes:
    """Some of a tensor's values."""
    flat = value.flatten()
    at = torch.linspace(0, flat.numel() - 1, min(SAMPLE, flat.numel()), dtype=torch.float64).long()
    return flat[at.to(flat.device)].cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in VOLATILE}
    return [_stable(v) for v in value] if isinstance(value, list) else value
