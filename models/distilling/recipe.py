"""The recipe of every learned compressor: warm start on features, then distillation through the decoder.

Tower, projector and decoder of the host are fixed; only the method's network learns. Stage "features" makes its tokens
like the host's own, without the decoder (see `losses.feature_loss`). Stage "answers" takes a question along:
divergence of the next-token distribution from that of the host with all tokens, on the positions of the answer
(weight 1), cross-entropy of the answer (0.5), and the features as an anchor (0.1). A method between decoder layers has
no tokens of its own to compare: it learns from answers alone, through the layers behind its choice. AdamW without
decay, warm-up over 3 % of each stage, then a cosine to zero, from the peak rates that the method names (times
`Settings.rate`); gradients are clipped at 1; weights are float32 whatever the host's.

What a step draws depends on seed, stage and step alone: a run that was interrupted gives the same weights as one that
was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveate.compressors.learned import DISTILLED, Learned
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models import learned
from foveate.models.distilling.judge import Figure, judge
from foveate.models.distilling.lessons import Lessons
from foveate.models.distilling.pupil import Pupil
from foveate.models.distilling.settings import PARTS, Settings
from foveate.models.errors import HostError
from foveate.models.host import Host

Learn = Callable[[Pupil, str, int], tuple[dict[str, float], float]]
WARM, CLIP, BETAS = 0.03, 1.0, (0.9, 0.98)
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Progress:
    """One step that has been taken.

    Attributes:
        part: stage of the recipe.
        step, steps: so far and in all, in this stage.
        rate: learning rate of the step.
        keep: keep ratio of the step, mean over rows.
        losses: by name; "loss" is their weighted sum.
    """

    part: str
    step: int
    steps: int
    rate: float
    keep: float
    losses: dict[str, float]


def find(name: str, host: Host) -> tuple[str, Learned]:
    """Stage and method that a name means, for a host that could run it.

    Args:
        name: of a learned method, with "STAGE:" in front where several stages have one.
        host: that shall be taught.
    Raises:
        ValueError: no such method, one that does not learn or is not made by this recipe, or several of that name.
        HostError: this host cannot run it.
    """
    stage, _, method = name.rpartition(":")
    known = sorted(key for key, cls in COMPRESSORS.items() if cls.learned and cls.made_by == DISTILLED)
    found = [key for key in known if key[1] == method and stage in ("", key[0])]
    if len(found) != 1:
        wrong = "is several" if found else "is no method that is distilled"
        raise ValueError(f"{name!r} {wrong}; there are {', '.join(f'{s}:{n}' for s, n in known)}")
    if (reason := host.forbids(*found[0], frames=2)) is not None:  # what is for videos may learn
        raise HostError(f"{host.name}: {reason}")
    return found[0][0], make(*found[0])


class Run:
    """A training with its checkpoint, which is replaced atomically.

    Args:
        host: the teacher; its weights are fixed from now on.
        name: of the method, see `find`.
        lessons: to train on.
        settings: numbers.
        folder: for the checkpoint.
        resume: go on from the checkpoint in it. Without it a folder that holds one is refused.
        learn: gives a pupil the gradients of a step of a stage, as `Pupil.learn` does; other processes may help.
    Raises:
        ValueError: see `find`; no step to take; a folder that holds another training, or one where nothing was asked
            to go on.
    """

    def __init__(
        self,
        host: Host,
        name: str,
        lessons: Lessons,
        settings: Settings,
        folder: str | Path,
        resume: bool = False,
        learn: Learn = Pupil.learn,
    ) -> None:
        self.host, self.lessons, self.settings, self.learn = host, lessons, settings, learn
        self.stage, method = find(name, host)
        self.pupil = Pupil(host, self.stage, method, lessons, settings)
        self.method, self.steps = self.pupil.method, self.pupil.steps
        if not any(self.steps(part) for part in PARTS):
            raise ValueError(f"steps_b: is 0, and {method.name} learns from answers alone")
        self.path, self.part, self.step = Path(folder) / CHECKPOINT, PARTS[0], 0
        if self.path.exists() and not resume:
            raise ValueError(f"{self.path}: a training already; go on with it (--resume), or choose another folder")
        self.optimiser = self._optimiser()
        if self.path.exists():
            self._restore()

    @property
    def network(self) -> nn.Module:
        """What learns and stays."""
        return self.pupil.network

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on with."""
        numbers = {name: getattr(self.settings, name) for name in ("steps_a", "steps_b", "batch", "seed", "rate")}
        about = {"method": f"{self.stage}:{self.method.name}", "host": self.host.fingerprint}
        return about | {"data": self.lessons.label} | numbers

    def train(self, watchers: Iterable[Callable[[Progress], None]] = ()) -> None:
        """The steps that are still to be taken. Raises: FloatingPointError on a loss that is not finite."""
        watchers = list(watchers)
        while True:
            while self.step < self.steps(self.part):
                progress = self._advance()
                for watch in watchers:
                    watch(progress)
                if self.step % self.settings.save_every == 0:
                    self.save()
            if self.part == PARTS[-1]:
                break
            self.part, self.step = PARTS[PARTS.index(self.part) + 1], 0
            self.optimiser = self._optimiser()
        self.save()

    def finish(self, folder: str | Path | None = None) -> tuple[Path, list[Figure]]:
        """Rounds the network as its file does, judges it on held-out rows, writes its file and gives it to the host.

        Args:
            folder: for the weights; None = the host's own, see `models.learned.home`.
        """
        method = replace(self.method, network=learned.rounded(self.network).eval())
        held = self.lessons.held_out(self.settings.held_out)
        figures = judge(self.host, self.stage, method, held, self.settings.batch) if held else []
        recipe = ", then ".join(PARTS if self.pupil.by_features else PARTS[1:])
        about = {"recipe": recipe, **self.identity, "figures": [f.to_dict() for f in figures]}
        place = learned.home(self.host) if folder is None else folder
        path = learned.save(place, self.host, self.stage, method.name, self.network, about)
        self.host.learned[self.stage, method.name] = learned.read(path, self.host)
        return path, figures

    def save(self) -> None:
        """Writes the checkpoint beside its place, then moves it there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {"identity": self.identity, "part": self.part, "step": self.step}
        state |= self.pupil.state() | {"optimiser": self.optimiser.state_dict()}
        torch.save(state, part)
        os.replace(part, self.path)

    def _restore(self) -> None:
        saved = torch.load(self.path, map_location=self.host.device, weights_only=True)
        mine = self.identity
        for name, value in saved["identity"].items():
            if mine.get(name) != value:
                raise ValueError(f"{self.path}: is of another training: {name} {value!r}, here {mine.get(name)!r}")
        self.part, self.step = saved["part"], saved["step"]
        self.pupil.load({name: saved[name] for name in self.pupil.state()})
        self.optimiser = self._optimiser()
        self.optimiser.load_state_dict(saved["optimiser"])

    def _optimiser(self) -> torch.optim.AdamW:
        """One group for each learning rate: the method's own one first, which the reconstructor shares."""
        groups: dict[float, list[nn.Parameter]] = {self.method.rate: []}
        for name, parameter in self.network.named_parameters():
            groups.setdefault(self.method.rate_of(name), []).append(parameter)
        groups[self.method.rate] += self.pupil.reconstructor.parameters()
        self.peaks = [rate * self.settings.rate for rate in groups]
        listed = [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
        return torch.optim.AdamW(listed, betas=BETAS, weight_decay=0.0)

    def _advance(self) -> Progress:
        """One step."""
        steps = self.steps(self.part)
        losses, keep = self.learn(self.pupil, self.part, self.step)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor(self.step, steps)
        nn.utils.clip_grad_norm_([p for group in self.optimiser.param_groups for p in group["params"]], CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return Progress(self.part, self.step, steps, self.optimiser.param_groups[0]["lr"], keep, losses)


def factor(step: int, steps: int) -> float:
    """On the learning rate: up over the first `WARM` of the steps, then a cosine to zero."""
    warm = max(1, round(WARM * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
