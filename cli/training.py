"""A training run: its configuration, its replay tables, its policy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from foveate.cli import data
from foveate.cli.config import save_resolved
from foveate.cli.reading import open_model
from foveate.plans.portfolio import Portfolio
from foveate.policies.train import Progress, Splits, TrainConfig, train
from foveate.rollouts.replay import fill

if TYPE_CHECKING:
    from foveate.models.host import Host
    from foveate.policies.train import Trained

PARTS = {"train": "policy-train", "validation": "validation", "calibration": "calibration"}
"""Part of the tables -> split of the built-in tasks."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Args:
        name: reference, a folder, or a hub id.
        dtype: of its weights.
        device: where it runs.
        learned: folder with weights of learned methods; None = the model's own.
    """

    name: str = "reference"
    dtype: str = "float32"
    device: str = "cpu"
    learned: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which inputs.

    Args:
        tasks: built-in tasks.
        train, validation, calibration: samples of each part.
        jsonl: your own data instead, questions about one picture or several, all of it, cut into the three parts by
            family.
        images: folder that its image paths start from; None = its own.
        label_free: also judge by the uncompressed model's own answers.
    Raises:
        ValueError: a part without samples.
    """

    tasks: tuple[str, ...] = data.TASKS
    train: int = 480
    validation: int = 160
    calibration: int = 160
    jsonl: str | None = None
    images: str | None = None
    label_free: bool = False

    def __post_init__(self) -> None:
        for part in PARTS:
            if getattr(self, part) < 1:
                raise ValueError(f"{part}: {getattr(self, part)} samples is below 1")


@dataclass(frozen=True)
class RolloutConfig:
    """How tables are filled.

    Args:
        workers: Ray actors; 0 = in this process, without Ray.
    """

    workers: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A training run.

    Args:
        version: of the file's form.
        model, data, rollouts, policy: the parts.
        portfolio: what the policy may choose from: a name or a YAML file.
        seed: of everything; over the policy's own.
        out: folder for everything that is written.
    Raises:
        ValueError: an unknown version.
    """

    version: int = 1
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    portfolio: str = "one_stage"
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    policy: TrainConfig = field(default_factory=TrainConfig)
    out: str = "runs/train"

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(f"version {self.version} is unknown; known: 1")


def run(config: RunConfig, resume: bool = False) -> Trained:
    """Fills the tables where they are not there yet, then trains.

    Args:
        config: everything.
        resume: go on from the last checkpoint. Without it a folder that holds one is refused.
    Raises:
        ValueError: a setting that does not fit, or a folder that holds another training.
    """
    from foveate.compressors.registry import COMPRESSORS

    out = Path(config.out)
    if (out / "checkpoint.pt").exists() and not resume:
        raise ValueError(f"{out}: holds a training already; go on with --resume, or choose another folder")
    # a table answers for plans that act at one stage: nothing else can be learnt from it
    portfolio = replace(Portfolio.from_yaml(config.portfolio, COMPRESSORS), max_active_stages=1)
    save_resolved(out, config)
    host = open_model(config.model.name, config.model.dtype, config.model.device, config.model.learned)
    splits = tables(host, portfolio, config)
    with _watched(config.policy.updates) as watch:
        return train(splits, replace(config.policy, seed=config.seed), out, [watch], resume)


def tables(host: Host, portfolio: Portfolio, config: RunConfig) -> Splits:
    """The three replay tables, filled where they are not there yet; what is done is not done again."""
    about, out = config.data, Path(config.out)
    settings = {"workers": config.rollouts.workers, "label_free": about.label_free}
    if about.jsonl is not None:
        samples = data.samples((), "", sys.maxsize, jsonl=about.jsonl, images=about.images)
        return Splits.of(fill(host, samples, portfolio, out / "inputs.parquet", **settings), config.seed)
    parts = {p: data.samples(about.tasks, split, getattr(about, p), config.seed) for p, split in PARTS.items()}
    settings["video"] = any(sample.clip is not None for samples in parts.values() for sample in samples)
    found = {p: fill(host, samples, portfolio, out / f"{p}.parquet", **settings) for p, samples in parts.items()}
    return Splits(**found)


@contextmanager
def _watched(updates: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr: updates so far, and the last score on the validation inputs."""
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[score]}"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=updates, score="")

        def watch(progress: Progress) -> None:
            bar.update(task, completed=progress.update, score=f"mean reward {progress.score:.4f}")

        yield watch
