"""Loading a controller and deciding needs numpy alone: everything heavier is blocked in a fresh process."""

import subprocess
import sys

import numpy as np
import pytest

from foveate.controller import Controller, Progress, pixel_features, question_features, save

pytestmark = pytest.mark.fast

PROGRAM = """
import sys
BLOCKED = {"torch", "transformers", "gymnasium", "stable_baselines3", "ray", "tensorboard", "yaml", "PIL", "scipy",
           "sklearn", "safetensors", "onnx", "onnxruntime", "cloudpickle"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Block())
import numpy as np
import numpy.random  # loaded on first use, and brings modules of its own
before = set(sys.modules)
from foveate.controller import Controller, Progress, pixel_features, question_features
controller = Controller.load(sys.argv[1], budget=0.5)
image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
groups = {"pixels": pixel_features(image), "question": question_features("what is the total?")}
mask = controller.artefact.table.legal("outside")
decision = controller.decide_stop("outside", groups, Progress(), mask)
foreign = {m.split(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"foveate", "numpy"}
print(decision.method, decision.ratio, decision.reason, sorted(foreign))
"""


def test_a_fresh_process_decides_the_same_with_numpy_alone(tmp_path, make_artefact):
    artefact, path = make_artefact("policy"), tmp_path / "tiny.fov"
    save(path, artefact)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    groups = {"pixels": pixel_features(image), "question": question_features("what is the total?")}
    mask = artefact.table.legal("outside")
    here = Controller(artefact, budget=0.5).decide_stop("outside", groups, Progress(), mask)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(here.method), str(here.ratio), here.reason, "[]"] and here.reason == "policy"
