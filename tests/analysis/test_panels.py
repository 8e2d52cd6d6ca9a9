"""Panels of TensorBoard: a picture and a video, each with what was kept of it."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveate.analysis.panels import write_panels
from foveate.envs.inputs import Input
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.serving.gate import Record, record_of
from foveate.serving.picture import FRAME, GAP
from foveate.tasks.clip import Clip

pytestmark = pytest.mark.fast


def test_every_input_whose_tokens_have_places_gets_a_panel_at_its_regimes_next_step(host, tmp_path):
    still = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    clip = Clip.of(np.stack([np.roll(still, 4 * t, axis=1) for t in range(4)]))
    about = ("left ?", (), "film", "f", "t", "test")
    shown = [
        Input("a#0", clip, *about),
        Input("b#0", clip, *about),
        Input("c#0", still, "left ?", (), "still", *about[3:]),
    ]
    plan = Plan.of(outside=("visionzip", 0.25))
    answered = []
    for each in shown:
        p = host.open([each.image], [each.question]).run(plan)
        p.decode(max_new_tokens=1)
        answered.append((each, record_of(p, 0, plan, "plan")))
    lost = Record(UNCOMPRESSED, "unsupported", why="tokens without places")
    assert write_panels(tmp_path / "tb", host, [*answered, (shown[2], lost)]) == 3
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"kept/film", "kept/still"}
    sheets = events.Images("kept/film")
    assert [sheet.step for sheet in sheets] == [0, 1] and len(events.Images("kept/still")) == 1
    assert (sheets[0].width, sheets[0].height) == (2 * FRAME + GAP, 2 * FRAME + GAP)
    (text,) = events.Tensors("asked/still/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("left ? | outside:visionzip@0.25 | ")
