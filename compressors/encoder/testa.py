"""TESTA, inside the tower: merge the patches of each frame of a video, block by block."""

from __future__ import annotations

from dataclasses import dataclass

from foveate.compressors.encoder.tome import ToMe
from foveate.compressors.registry import register


@register
@dataclass(frozen=True)
class Testa(ToMe):
    """ToMe in every frame, as many patches in each, without telling attention how many a merged one stands for.

    Paper:   Ren et al., Findings of EMNLP 2023, https://arxiv.org/abs/2310.19060
    Code:    https://github.com/RenShuhuai-Andy/TESTA, testa/merge.py and testa/patch/timesformer.py
    Formula: c[i] = max_j cos(k[i], k[j]) over even i and odd j of a frame; the r largest c merge in each block:
             x = sum(s x) / sum(s), s = sum(s), s the number of tokens that each stands for
    Shapes:  keys (B, N, d), size (B, N) -> into, weight (B, N, 1), N the patches of one frame
    Cost:    2 B (N/2)^2 d FLOPs in each block that merges
    Differs: this is the axis of patches alone. The paper's tower attends across frames between its attention within
             them, and first merges frames there; hosts' towers see one frame at a time, so frames merge behind the
             tower, in the stage `outside`. The paper's r is the same in each block; see ToMe for how a count is spread
             and where CLS is. All frames keep equally many patches, by matchings of their own.

    Args: none.
    Raises:
        ValueError: `count` is outside 1..N, or halving in every block of this depth cannot reach it.
        MissingSignal: the host gave no `keys`.
    """

    name = "testa"
    stages = ("encoder",)
    modality = "video"
    proportional = False
    paper = "Ren et al., Findings of EMNLP 2023, https://arxiv.org/abs/2310.19060"
    fidelity = "reconstruction"
