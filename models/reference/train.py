"""The recipe of the reference model: learn to see, learn to answer with half the decoder, grow it, learn to answer
with all of it.

    python -m foveate.models.reference.train --out runs/reference             # resumable: run it again to go on
    python -m foveate.models.reference.train --out runs/reference --export    # checkpoint -> the package's weights
    python -m foveate.models.reference.train --out runs/more --start package  # go on from the package's weights

Stages: `see` trains the ViT alone (patch labels and captions); `small` trains the whole model with every second
decoder layer; `full` starts from the grown model, which computes the same at first. Learning rates rise over 100
steps, stay, and fall to a twentieth over the last two fifths of an answering stage. On a GPU, give more steps and
`--batch 256`; `--device auto` picks it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader
from transformers import LlavaProcessor

from foveate.models.reference import WEIGHTS
from foveate.models.reference.architecture import DECODER_LAYERS, build, build_text_tower, grow
from foveate.models.reference.batches import Batch, batches
from foveate.models.reference.evaluate import accuracy, usable_regimes
from foveate.models.reference.muon import Muon
from foveate.models.reference.objectives import Learner
from foveate.models.reference.processor import build_processor, build_tokenizer
from foveate.models.reference.shipping import export, restore

LOG = "training.jsonl"
STAGES = ("see", "small", "full")
LAYERS = {"see": DECODER_LAYERS // 2, "small": DECODER_LAYERS // 2, "full": DECODER_LAYERS}
WEIGHT = {"answer": 1.0, "dense": 0.2, "contrast": 0.1, "look": 0.5}  # `see`: dense and contrast, 1 and 0.2
HARD = {
    **{"reading": 3.0, "tables": 2.5, "receipts": 1.0, "forms": 1.2, "charts": 4.0, "digits": 1.2, "pictures": 3.0},
    **{"counting": 5.0, "relations": 2.0, "single": 1.0, "search": 0.7, "easy_vqa": 0.5},
}  # pictures per regime relative to 1


@dataclass
class Common:
    """What every run has. `batch` samples a step; rates are peaks (Muon for matrices of layers, AdamW for the rest)."""

    out: Path
    batch: int = 32
    muon_lr: float = 3e-3
    adam_lr: float = 1.5e-3
    seed: int = 0
    device: str = "auto"
    threads: int = 2
    workers: int = 1
    save_every: int = 200
    check_every: int = 400


@dataclass
class Settings(Common):
    """One run. Steps are per stage. `start`: "scratch", or "package" to go on from the package's weights where `out`
    holds no checkpoint."""

    see: int = 1200
    small: int = 1800
    full: int = 1400
    start: str = "scratch"


def learner(stage: str, device: str) -> Learner:
    """A fresh learner of the stage's depth."""
    tokenizer = build_tokenizer()
    return Learner(build(tokenizer, LAYERS[stage]), build_text_tower(tokenizer)).to(device)


def optimisers(module: Learner, settings: Common) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside layers, AdamW on embeddings, heads, norms and the text tower."""
    matrices, rest = [], []
    for name, p in module.named_parameters():
        inside = p.ndim == 2 and ".layers." in name and not name.startswith("tower")
        (matrices if inside else rest).append(p)
    return [
        Muon(matrices, lr=settings.muon_lr),
        torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(step: int, steps: int, start: int = 0, warm: int = 100, fall: float = 0.4) -> float:
    """Factor on the learning rates: up from `start`, flat, down to a twentieth over the last `fall` of the stage."""
    if step - start < warm:
        return (step - start + 1) / warm
    falling = fall * steps
    return max(0.05, min(1.0, (steps - step) / falling)) if falling else 1.0


class Run:
    """A training with its checkpoint: weights, optimiser state, stage and step, replaced atomically.

    Attributes:
        stages: their names, each a field of the settings.
        weights: the package's folder that `--export` writes to; its log lies beside it.
    """

    stages: tuple[str, ...] = STAGES
    weights: Path = WEIGHTS

    def __init__(self, settings: Common) -> None:
        self.settings = settings
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
        self.path = settings.out / "checkpoint.pt"
        self.log_path = settings.out / "log.jsonl"
        self.stage, self.step, self.seconds, self.warm_from = self.stages[0], 0, 0.0, 0
        torch.manual_seed(settings.seed)
        settings.out.mkdir(parents=True, exist_ok=True)
        saved = torch.load(self.path, map_location=self.device, weights_only=True) if self.path.exists() else None
        if saved:
            self.stage, self.step, self.seconds = saved["stage"], saved["step"], saved["seconds"]
        self.module = self.begin(saved is not None).to(self.device)
        self.optimisers = optimisers(self.module, settings)
        if saved:
            self.module.load_state_dict(saved["weights"])
            for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(state)

    def begin(self, resumed: bool) -> Learner:
        """The learner of the stage; `resumed`: a checkpoint will overwrite its weights."""
        if resumed or self.settings.start != "package":
            return learner(self.stage, self.device)
        return self.shipped(LAYERS)

    def shipped(self, layers: dict[str, int]) -> Learner:
        """The learner of the package's weights, to go on from; `layers`: see `restore`."""
        module, about = restore(self.weights, layers)
        self.stage, self.step, self.seconds = about["stage"], about["step"], about["seconds"]
        self.warm_from = self.step  # no optimiser state came along
        self.log_path.write_text(self.shipped_log.read_text())
        return module

    @property
    def shipped_log(self) -> Path:
        """The log that lies beside the package's weights."""
        return self.weights.parent / LOG

    def save(self) -> None:
        """Writes the checkpoint beside its place, then moves it there."""
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "stage": self.stage,
                "step": self.step,
                "seconds": self.seconds,
                "weights": self.module.state_dict(),
                "optimisers": [o.state_dict() for o in self.optimisers],
            },
            part,
        )
        os.replace(part, self.path)

    def next_stage(self) -> bool:
        """Moves to the next stage, growing the decoder where it gets deeper. False after the last."""
        if self.stage == self.stages[-1]:
            return False
        deeper = self.stages[self.stages.index(self.stage) + 1]
        if LAYERS[deeper] != LAYERS[self.stage]:
            self.module.model = grow(self.module.model, build_tokenizer()).to(self.device)
        self.stage, self.step, self.warm_from = deeper, 0, 0
        self.optimisers = optimisers(self.module, self.settings)
        self.save()
        return True

    def train_stage(self) -> None:
        """The steps that the stage still lacks."""
        steps = getattr(self.settings, self.stage)
        if self.step >= steps:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task(self.stage, total=steps, completed=self.step)
            mean: dict[str, float] = {}
            for batch in self.loader(steps):
                began = time.perf_counter()
                factor = rate(self.step, steps, self.warm_from, fall=0.0 if self.stage == "see" else 0.4)
                losses = self.update(batch, factor)
                self.step += 1
                self.seconds += time.perf_counter() - began
                mean = {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in losses.items()}
                bar.update(
                    task, advance=1, description=f"{self.stage} " + " ".join(f"{k} {v:.3f}" for k, v in mean.items())
                )
                if self.step % self.settings.save_every == 0 or self.step == steps:
                    self.save()
                    self.log(losses=mean)
                if self.stage != "see" and (self.step % self.settings.check_every == 0 or self.step == steps):
                    self.log(accuracy=self.check())

    def loader(self, steps: int) -> DataLoader:
        """The stage's batches from the next step to step `steps`."""
        weights = {regime: HARD.get(regime, 1.0) for regime in usable_regimes()}
        about = self.settings
        offset = STAGES.index(self.stage) * 10**7 // about.batch  # each stage draws pictures of its own
        first, last = offset + self.step, offset + steps
        return batches(weights, build_tokenizer(), about.seed, first, last, about.batch, about.workers)

    def check(self) -> dict[str, float]:
        """Regime -> accuracy of a small sample."""
        return accuracy(self.module.model, build_tokenizer(), "validation", 48)

    def ship(self) -> None:
        """Writes weights and log into the package."""
        about = {"stage": self.stage, "step": self.step, "seconds": round(self.seconds), "seed": self.settings.seed}
        export(self.module, self.weights, about, self.processor())
        self.shipped_log.write_text(self.log_path.read_text())

    def processor(self) -> LlavaProcessor:
        """The processor that ships with the weights."""
        return build_processor()

    def update(self, batch: Batch, factor: float) -> dict[str, float]:
        """One step. Raises FloatingPointError on a loss that is not finite, before any weight changes."""
        seeing = self.stage == "see"
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            losses = self.module(batch.to(self.device), answers=not seeing)
        total = sum(
            ({"dense": 1.0, "contrast": 0.2} if seeing else WEIGHT)[name] * value for name, value in losses.items()
        )
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"stage {self.stage}, step {self.step}: loss is {float(total.detach())}; last checkpoint {self.path}"
            )
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimiser, peak in zip(self.optimisers, (self.settings.muon_lr, self.settings.adam_lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in losses.items()}

    def log(self, **values: object) -> None:
        """One JSON line in `log.jsonl`."""
        line = {"stage": self.stage, "step": self.step, "hours": round(self.seconds / 3600, 3), **values}
        with self.log_path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def parse(argv: list[str] | None, defaults: Common, about: str | None) -> tuple[Any, bool]:
    """Flags -> settings of the same kind as `defaults`, and whether only to export; `about`: for --help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path if name == "out" else type(value), default=value)
    parser.add_argument(
        "--export", action="store_true", help="write the checkpoint's weights into the package and stop"
    )
    flags = vars(parser.parse_args(argv))
    only = flags.pop("export")
    return type(defaults)(**flags), only


def follow(kind: type[Run], settings: Common, only_export: bool) -> None:
    """Trains all stages, or exports the checkpoint."""
    torch.set_num_threads(settings.threads)
    run = kind(settings)
    if only_export:
        if not run.path.exists():
            raise SystemExit(f"train: no checkpoint at {run.path}")
        run.ship()
        print(f"{run.weights}: stage {run.stage}, step {run.step}, {run.seconds / 3600:.2f} hours of training")
        return
    last = run.stages[-1]
    if run.stage == last and run.step >= getattr(settings, last):
        print(f"train: {run.step} steps of stage {last} are taken; a larger --{last} gives more")
    while True:
        run.train_stage()
        if not run.next_stage():
            return


def main(argv: list[str] | None = None) -> None:
    """The command."""
    follow(Run, *parse(argv, Settings(Path("runs/reference")), __doc__))


if __name__ == "__main__":
    main()
