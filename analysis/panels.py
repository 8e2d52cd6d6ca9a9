"""Panels of TensorBoard: what the gate kept of some inputs, drawn over what was shown; of a video on its frames.

| key | unit | meaning |
|---|---|---|
| kept/R | picture | an input of regime R: tokens that reach the last decoder layer bright and outlined, the rest dim |
| asked/R | text | its question, the plan and the FLOPs as a share of the uncompressed pass |
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from foveate.envs.inputs import Input
from foveate.serving.gate import Record
from foveate.serving.picture import row_picture

if TYPE_CHECKING:
    from foveate.models.host import Host


def write_panels(folder: str | Path, host: Host, answered: Iterable[tuple[Input, Record]]) -> int:
    """Writes a panel for each input whose tokens have places; the n-th of a regime at step n. Returns how many.

    Args:
        folder: of the event files.
        host: which has answered.
        answered: inputs, each with what became of it.
    """
    steps: dict[str, int] = {}
    with SummaryWriter(str(folder)) as writer:
        for each, record in answered:
            if record.kept is None:
                continue
            step = steps[each.regime] = steps.get(each.regime, -1) + 1
            picture = row_picture(host, each.image, each.question, record.plan, record.kept)
            writer.add_image(f"kept/{each.regime}", np.asarray(picture), step, dataformats="HWC")
            said = f"{each.question} | {record.plan.label()} | {100 * record.share:.1f} %"
            writer.add_text(f"asked/{each.regime}", said, step)
    return sum(step + 1 for step in steps.values())
