"""`foveate cost`: what a plan will cost on a model, from its configuration alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.reading import PLAN_HELP, check_runs, read_plan
from foveate.cli.text import columns, flops
from foveate.plans.plan import STAGES, UNCOMPRESSED, Plan

if TYPE_CHECKING:
    from foveate.models.host import Host

EXAMPLE = 'foveate cost --model reference --plan "outside:visionzip@0.25" --text 24'


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("--model", default="reference", metavar="CONFIG", help="reference, a folder, or a config.json")
    parser.add_argument("--plan", default="none", help=PLAN_HELP)
    parser.add_argument("--text", type=int, default=32, metavar="N", help="prompt tokens that are text (default: 32)")
    parser.add_argument("--answer", type=int, default=8, metavar="N", help="answer tokens, end included (default: 8)")
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="questions about the picture (default: 1)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Prints the cost."""
    host = host_of_config(args.model)
    found = cost(host, read_plan(args.plan), args.text, args.answer, args.turns)
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def cost(host: Host, plan: Plan, n_text: int, answer: int = 8, turns: int = 1) -> dict[str, Any]:
    """The forecast of a plan beside that of the uncompressed pass.

    Args:
        host: a model, loaded or not.
        plan: which methods.
        n_text: prompt tokens that are text.
        answer: tokens generated, the end token included.
        turns: questions about the picture.
    Returns:
        Plain data: FLOPs, tokens and KV bytes by stage, for both.
    Raises:
        ValueError: a plan that the model cannot run, or a number out of range.
    """
    check_runs(host, plan, max(1, n_text))
    both = {"plan": plan, "uncompressed": UNCOMPRESSED}
    found: dict[str, Any] = {
        "model": host.name,
        "label": plan.label(),
        "text": n_text,
        "answer": answer,
        "turns": turns,
    }
    for name, each in both.items():
        ledger = host.forecast(each, n_text, answer, turns)
        totals = {"flops": ledger.total, "matrix_flops": ledger.matrix_total, "kv_bytes": ledger.kv_bytes_end}
        found[name] = {**totals, "by_stage": ledger.by_stage(), "tokens": dict(ledger.tokens)}
    found["share"] = found["plan"]["flops"] / found["uncompressed"]["flops"]
    return found


def table(found: dict[str, Any]) -> str:
    """The cost as text."""
    plan, full = found["plan"], found["uncompressed"]
    stages = [*STAGES, *(s for s in full["by_stage"] | plan["by_stage"] if s not in STAGES)]
    rows = []
    for stage in stages:
        mine, other = plan["by_stage"].get(stage, 0), full["by_stage"].get(stage, 0)
        tokens = (plan["tokens"].get(stage, "-"), full["tokens"].get(stage, "-"))
        rows.append((stage, tokens[0], flops(mine), tokens[1], flops(other)))
    rows.append(("total", "", flops(plan["flops"]), "", flops(full["flops"])))
    rows.append(("KV cache", "", f"{plan['kv_bytes']} B", "", f"{full['kv_bytes']} B"))
    head = ("stage", "tokens after", found["label"], "tokens after", "none")
    text = columns(head, rows, right=(1, 2, 3, 4))
    return f"{text}\n\n{100 * found['share']:.1f} % of the uncompressed FLOPs"


def host_of_config(model: str) -> Host:
    """A host that can be asked what it would cost, made from a configuration: no weights are read.

    Args:
        model: "reference", a folder with a config.json, or such a file.
    Raises:
        UnsupportedModel: nothing there, or a family that no host here knows.
    """
    import torch
    from transformers import AutoConfig, LlavaForConditionalGeneration

    from foveate.models import FAMILIES
    from foveate.models.decoder import Decoder
    from foveate.models.errors import HostError, UnsupportedModel
    from foveate.models.host import Host
    from foveate.models.llava import shape_of
    from foveate.models.vit import VisionTower

    class ConfigHost(Host):
        """Sizes and depths of a model that is not loaded."""

        def __init__(self, name: str, config: Any) -> None:
            with torch.device("meta"):  # parameters have shapes and no memory
                made = LlavaForConditionalGeneration(config).to(getattr(config, "dtype", None) or torch.float32)
            tower = VisionTower(made.model.vision_tower, config.vision_feature_layer)
            self.name, self.text, self.device = name, None, torch.device("meta")
            self.shape, self.grid = shape_of(tower, made), tower.grid
            self.encoder_depth = tower.depth
            self.decoder_depth = Decoder(made.model.language_model, made.lm_head).depth
            self.cls_stays = config.vision_feature_select_strategy == "full" and tower.has_cls
            kinds = {"keys", "received_attention", "last_query", "accumulated_attention"}
            self.signals = frozenset(kinds | ({"cls_attention"} if tower.has_cls else set()))

        def open(self, images: Any, questions: Any) -> Any:
            raise HostError(f"{self.name}: only its configuration was read, it cannot run")

    if model == "reference":
        from foveate.models.reference import WEIGHTS

        folder = WEIGHTS
    else:
        folder = Path(model)
    if not (folder.is_file() or (folder / "config.json").is_file()):
        raise UnsupportedModel(f"{folder}: no config.json there")
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"{folder}: no usable config: {' '.join(str(error).split())}") from error
    if config.model_type not in FAMILIES:
        raise UnsupportedModel(f"{folder}: model type {config.model_type!r}; known are {', '.join(FAMILIES)}")
    return ConfigHost(str(model), config)
