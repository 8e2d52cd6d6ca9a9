"""What users write on the command line, read: plans and models."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.plans.plan import STAGES, UNCOMPRESSED, Choice, Plan, near, stage_index

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.models.inputs import PromptShape

OWN = ("reference", "reference-video")  # models that the package brings, as `models.embedded` lists them
PLAN_HELP = 'named plan, YAML file, "outside:visionzip@0.25 + prefill:fastv@0.5", or JSON; "none" = uncompressed'


def read_plan(text: str) -> Plan:
    """A plan from its label, its JSON form, its file, or its name in `configs/plans/`.

    Raises:
        ValueError: none of them, or an unknown stage or method, or an impossible ratio; says what and where.
        FileNotFoundError: no plan of that name; near names are listed.
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            plan = Plan.from_dict(json.loads(text))
        except ValueError as error:
            raise ValueError(f"plan {text}: {error}") from None
    elif text in ("none", ""):
        plan = UNCOMPRESSED
    elif "@" in text and not Path(text).is_file():
        plan = _labelled(text)
    else:
        plan = _named(text)
    check_methods(plan)
    return plan


def _named(text: str) -> Plan:
    """A plan from its file or its name; whoever gives a method's name instead is told the form."""
    from foveate.compressors.registry import COMPRESSORS
    from foveate.plans.named import load_plan

    try:
        return load_plan(text)
    except FileNotFoundError as error:
        at = [stage for stage, name in COMPRESSORS if name == text]
        if not at:
            raise
        form = f"{min(at, key=STAGES.index)}:{text}@0.25"
        raise ValueError(f"plan {text!r} is a method: give its stage and keep ratio, such as {form!r}") from error


def _labelled(text: str) -> Plan:
    """A plan from "stage:method@keep + ..."."""
    choices: dict[str, Choice] = {}
    for part in text.split("+"):
        stage, colon, rest = part.strip().partition(":")
        method, at, keep = rest.partition("@")
        try:
            if not colon or not at:
                raise ValueError("needs the form stage:method@keep")
            if STAGES[stage_index(stage)] in choices:
                raise ValueError("the stage is given twice")
            choices[stage] = Choice(method.strip(), _number(keep))
        except ValueError as error:
            raise ValueError(f"plan, {part.strip()!r}: {error}") from None
    return Plan.of(**choices)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"keep ratio {text.strip()!r} is not a number") from None


def listed(flag: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names in a comma-separated text. Raises: ValueError on an unknown one, with near ones, or where none is."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if name not in known:
            raise ValueError(f"{flag}: unknown {name!r}; near: {near(name, known)}")
    if not found:
        raise ValueError(f"{flag}: names nothing")
    return found


def read_ratios(flag: str, text: str) -> tuple[float, ...]:
    """The keep ratios in a comma-separated text. Raises: ValueError on one that is none."""
    kept = []
    for part in text.split(","):
        try:
            kept.append(Choice("any", float(part)).keep)
        except ValueError:
            raise ValueError(f"{flag}: {part.strip()!r} is no keep ratio in (0, 1]") from None
    return tuple(kept)


def read_counts(flag: str, text: str) -> tuple[int, ...]:
    """The numbers in a comma-separated text, each once. Raises: ValueError on one that is no number from 1 up."""
    found = []
    for part in map(str.strip, text.split(",")):
        if not part.isdecimal() or int(part) < 1 or int(part) in found:
            raise ValueError(f"{flag}: {part!r} is no number from 1 up, or stands there twice")
        found.append(int(part))
    return tuple(found)


def check_methods(plan: Plan) -> None:
    """Raises: ValueError where a plan names a method that is not there, with near names."""
    from foveate.compressors.registry import COMPRESSORS

    for stage, choice in plan.active:
        known = sorted(name for at, name in COMPRESSORS if at == stage)
        if choice.method != "blind" and choice.method not in known:
            raise ValueError(f"plan, {stage}: unknown method {choice.method!r}; near: {near(choice.method, known)}")


def check_runs(host: Host, plan: Plan, shape: PromptShape | None = None) -> None:
    """Raises: ValueError where a model cannot run a plan, with the stage and the reason."""
    shape = shape or host.prompt_shape(1)
    for stage, choice in plan.active:
        if (reason := host.supports(stage, choice.method, shape.frames)) is not None:
            raise ValueError(f"plan, {stage}: {reason}")
    try:
        host.forecast(plan, shape)
    except ValueError as error:
        raise ValueError(f"plan {plan.label()}: {error}") from None


def model_arguments(parser: argparse.ArgumentParser, learned: bool = True) -> None:
    """Declares --model, --dtype and --device of the verbs that open a model; --learned too, unless they make it."""
    parser.add_argument(
        "--model", default="reference", help=f"{', '.join(OWN)}, a folder, or a hub id (default: reference)"
    )
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument(
        "--device",
        default="cpu",
        help="where the model runs: cpu, cuda:1, ..., or auto: spread over what is there (default: cpu)",
    )
    if learned:
        parser.add_argument(
            "--learned",
            metavar="FOLDER",
            help="folder with weights of learned methods (default: where foveate distill puts them for this model)",
        )


def open_model(model: str, dtype: str = "float32", device: str = "cpu", learned: str | None = None) -> Host:
    """A model, loaded behind a spinner, with the networks of learned methods in a folder (None = the model's own).

    Raises:
        ValueError: a name that cannot be one, or a device that cannot be used.
        UnsupportedModel: a model that cannot be had or run.
    """
    from foveate.cli.text import waiting

    here = model in OWN or Path(model).exists()
    if not here and "/" not in model:  # hub ids have an owner; asking the hub takes half a minute where there is none
        raise ValueError(
            f"model {model!r}: not {' or '.join(map(repr, OWN))}, no folder of that name, and no hub id (owner/name)"
        )
    if here:  # nothing to download: the spinner says enough
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is first imported
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what fails is told at the end, not at every try
    with waiting(f"loading {model}"):
        _check_device(device)
        from foveate.models import load_host

        return load_host(model, dtype, device, learned)


def _check_device(device: str) -> None:
    """Raises: ValueError where torch cannot use a device."""
    import torch

    from foveate.models.placing import spread

    if spread(device):
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion: a torch that was built without it
        raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None
