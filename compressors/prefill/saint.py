"""SAINT in the decoder: visual tokens with many near twins vote themselves out, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.compressors.encoder.saint import Saint
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class SaintPrefill(Saint):
    """The votes of SAINT, on the keys of visual tokens in a span of decoder layers.

    Paper:   Jeddi et al., 2025, https://arxiv.org/abs/2503.11549
    Code:    https://github.com/ArmenJeddi/saint, VLM/transformers/src/transformers/models/llama/modeling_llama.py
    Formula: as at `encoder`
    Shapes:  visual_keys (B, N, d) -> anchor (B, K) int64
    Cost:    2 B N^2 d FLOPs at each layer before which tokens go
    Differs: as at `encoder`. The code reads the keys of the layer after which tokens go, here they are those of the one
             that follows, from its input. Where the tower has pruned too, the code takes one text token for a visual.

    Args:
        threshold: as at `encoder`; 0.82 in the code, 0.83 in its script.
        degree: as at `encoder`.
        gamma: as at `encoder`.
        form: as at `encoder`; the authors use votes.
        layers: first and last layer after which tokens go, 0-based, and the depth of the paper's model.
        divisor: as at `encoder`.
        clip: as at `encoder`.
    Raises:
        ValueError: see `encoder`.
        MissingSignal: the host gave no `visual_keys`.
    """

    stages = ("prefill",)
    kinds = frozenset({"visual_keys"})
    positions = "keep"
    inside: ClassVar[int] = 0

    threshold: float = 0.82
    layers: tuple[tuple[int, int], int] = ((7, 16), 32)
