"""Folders as a hub has them, configurations alone, and what is refused before a weight is read."""

import json
import shutil

import pytest
from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from foveate.models import load_host
from foveate.models.errors import UnsupportedModel
from foveate.models.families.qwen2_5_vl import Qwen25VLHost
from foveate.models.families.qwen3_vl import Qwen3VLHost
from foveate.plans.plan import UNCOMPRESSED

pytestmark = pytest.mark.fast
HOSTS = {"qwen2_5_vl": Qwen25VLHost, "qwen3_vl": Qwen3VLHost}


def test_a_folder_as_the_hub_has_it_loads_without_torchvision(kind, tiny, folders, hosts, tmp_path):
    """Old names of sizes, a processor that only torchvision can run, its video part, a chat template in JSON."""
    folder = shutil.copytree(folders(kind), tmp_path / "hub")
    sizes = {"min_pixels": 256, "max_pixels": 4096, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    name = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[kind]
    settings = {**sizes, "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": name}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "Qwen3VLVideoProcessor"}')
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
    p = load_host(folder).open([tiny.picture(0)], ["left ?"])
    p.decode(max_new_tokens=4)
    q = hosts(kind).open([tiny.picture(0)], ["left ?"])
    q.decode(max_new_tokens=4)
    assert p.rows[0].prompt == q.rows[0].prompt
    assert p.generated == q.generated


def test_the_published_models_costs_are_known_from_their_configurations():
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    config = Qwen2_5_VLConfig(
        text_config={**text, "num_key_value_heads": 4, "vocab_size": 152064, **rope}, vision_config=vision
    )
    host = Qwen25VLHost.on_paper(config, "7B")
    shape = host.prompt_shape(20)
    assert shape.n_visual == 256
    ledger = host.forecast(UNCOMPRESSED, shape)
    n, m = 276, 1024  # entries of the prompt; patches, in windows of 64 but for four blocks
    layer = 2 * n * (3584 * (3584 + 2 * 512 + 3584) + 3 * 3584 * 18944) + 4 * n * n * 3584
    block = 2 * m * (4 * 1280 * 1280 + 3 * 1280 * 3420)
    assert ledger.by_stage("matrix") == {
        "encoder": 2 * m * 1280 * 3 * 2 * 14 * 14 + 32 * block + 4 * m * 1280 * (28 * 64 + 4 * m),
        "projector": 2 * 256 * (5120 * 5120 + 5120 * 3584),
        "prefill": 28 * layer + 2 * 3584 * 152064,
    }


def test_levels_cost_a_merger_each():
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 2560}
    text = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}}
    config = Qwen3VLConfig(text_config={**text, "num_key_value_heads": 8, **rope}, vision_config=vision)
    host = Qwen3VLHost.on_paper(config, "4B")
    ledger = host.forecast(UNCOMPRESSED, host.prompt_shape(20)).by_stage("matrix")
    assert ledger["projector"] == 4 * 2 * 256 * (4608 * 4608 + 4608 * 2560)  # its own and three levels'
    assert host.decoder.shape.query_width == 32 * 128


@pytest.mark.parametrize(
    ("part", "name", "value", "reason"),
    [
        ("text_config", "model_type", "gpt2", "language model 'gpt2'; known: qwen2_5_vl_text, qwen3_vl_text"),
        ("vision_config", "patch_size", (4, 4), r"patches of \(4, 4\) pixels and 2 frames: needs one number each"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_name(kind, folders, part, name, value, reason):
    config = AutoConfig.from_pretrained(folders(kind))
    object.__setattr__(getattr(config, part), name, value)
    with pytest.raises(UnsupportedModel, match=f"mine: {reason}"):
        HOSTS[kind].check(config, "mine")


def test_windows_smaller_than_a_token_are_refused(folders):
    config = AutoConfig.from_pretrained(folders("qwen2_5_vl"))
    config.vision_config.window_size = 7
    with pytest.raises(UnsupportedModel, match="mine: attention windows of 7 pixels hold no whole token"):
        Qwen25VLHost.check(config, "mine")
