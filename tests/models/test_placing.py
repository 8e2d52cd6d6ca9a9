"""Models that accelerate places: layers fetched for each use answer as they do in memory."""

import pytest
import torch

from foveate.models import load_host
from foveate.models.errors import UnsupportedModel
from foveate.models.placing import device_of, spread
from foveate.plans.plan import Plan

PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens")
REST = ("model.language_model.norm", "model.language_model.rotary_emb", "lm_head", "model.language_model.layers.0")


def away(*layers):
    """A device map of the tiny model, these layers on the disk."""
    own = {f"model.language_model.layers.{i}": "disk" if i in layers else "cpu" for i in range(1, 4)}
    return {**dict.fromkeys([*PARTS, *REST], "cpu"), **own}


PLAN = Plan.of(prefill=("fastv", 0.5), decode=("look_m", 0.5))


def test_layers_on_the_disk_answer_as_layers_in_memory(folders, tiny):
    near, far = load_host(folders()), load_host(folders(), device=away(1, 3))
    stored = [p.device.type for p in far.decoder.layers[1].parameters()]
    assert set(stored) == {"meta"}, "the layer is not in memory"
    a, b = (host.open([tiny.picture(0), tiny.picture(1)], tiny.questions[:2]).run(PLAN) for host in (near, far))
    assert a.decode() == b.decode()
    assert torch.equal(a.logits, b.logits)


def test_the_fingerprint_is_that_of_the_model_not_of_its_placement(folders):
    assert load_host(folders(), device=away(2)).fingerprint == load_host(folders()).fingerprint


def test_auto_without_an_accelerator_is_the_cpu(folders):
    if torch.cuda.is_available():
        pytest.skip("an accelerator is here")
    assert load_host(folders(), device="auto").device == torch.device("cpu")


def test_parts_that_are_read_from_outside_cannot_be_put_away(folders):
    with pytest.raises(UnsupportedModel, match=r"puts 'lm_head.weight' away"):
        load_host(folders(), device={**away(), "lm_head": "disk"})
    with pytest.raises(UnsupportedModel, match=r"layers.0"):
        load_host(folders(), device={**away(), "model.language_model.layers.0": "disk"})


def test_a_hook_says_where_a_module_runs():
    layer = torch.nn.Linear(1, 1)
    layer._hf_hook = type("Hook", (), {"execution_device": 1})()
    assert device_of(layer) == torch.device("cuda", 1)
    assert spread("auto") and spread({}) and not spread("cuda:1")
