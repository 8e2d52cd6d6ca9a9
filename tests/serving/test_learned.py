"""A model that is already loaded brings its learned methods to the gate."""

import shutil

import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models import load_host
from foveate.models.learned import home, save
from foveate.plans.plan import Plan
from foveate.serving.gate import host_of

KEY = ("projector", "ldpv2")


def test_weights_in_the_folder_that_a_model_came_from_are_found(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    host = load_host(place)
    save(home(host), host, *KEY, untrained(make(*KEY), host.widths, host.matrices()).network, {})
    model = AutoModelForImageTextToText.from_pretrained(place)
    loaded = host_of(model, AutoProcessor.from_pretrained(place))
    assert loaded.supports(*KEY) is None
    picture = np.zeros((40, 40, 3), np.uint8)
    p = loaded.open([picture], ["what ?"]).run(Plan.of(projector=("ldpv2", 0.25)))
    assert p.counts["projector"] == [loaded.n_visual // 4]
