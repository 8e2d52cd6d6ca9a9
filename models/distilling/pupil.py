"""What learns in a training: the network of a method, and its gradients on the rows of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from foveate.compressors.base import STAGES, Resampler
from foveate.compressors.learned import Learned, untrained
from foveate.models.answers import judged
from foveate.models.distilling.further import FURTHER
from foveate.models.distilling.lessons import Lessons
from foveate.models.distilling.losses import Reconstructor, answer_losses, feature_loss
from foveate.models.distilling.pairs import Batch, drawn, logits, views
from foveate.models.distilling.settings import PARTS, Settings
from foveate.models.errors import HostError
from foveate.models.host import Host
from foveate.tasks.splits import stream

CROSS_ENTROPY, ANCHOR = 0.5, 0.1
MILDEST = 1 - 2**-20
"""The draw that stands for the largest of the counts that a method is trained at."""


class Pupil:
    """A method's network in float32, and the reconstructor that is thrown away at last.

    What it does depends on seed, stage and step alone; nothing outlives a step but weights and gradients.

    Args:
        host: the teacher; its weights are fixed from now on.
        stage: where the method acts.
        method: what shall learn, without a network.
        lessons: to train on.
        settings: numbers.

    Attributes:
        by_features: whether the method acts before the decoder, and so has tokens to compare.
    """

    def __init__(self, host: Host, stage: str, method: Learned, lessons: Lessons, settings: Settings) -> None:
        self.host, self.stage, self.lessons, self.settings = host, stage, lessons, settings
        self.by_features = STAGES.index(stage) < STAGES.index("prefill")
        host.model.requires_grad_(False)
        if host.text is not None:
            host.text.model.requires_grad_(False)
        method = untrained(method, host.widths, host.matrices(), settings.seed)
        self.method = replace(method, network=method.network.to(host.device, torch.float32).train())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.reconstructor = Reconstructor(host.grid, host.widths.decoder).to(host.device)

    @property
    def network(self) -> nn.Module:
        """What learns and stays."""
        return self.method.network

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that learns, in a fixed order."""
        yield from self.network.parameters()
        yield from self.reconstructor.parameters()

    def steps(self, part: str) -> int:
        """Of a stage of the recipe; features are none of a method that acts inside the decoder."""
        return (self.settings.steps_a if self.by_features else 0) if part == PARTS[0] else self.settings.steps_b

    def learn(self, part: str, step: int, share: int = 0, shares: int = 1) -> tuple[dict[str, float], float]:
        """Adds the gradients of a step's rows, or of a share of them; returns losses by name and the mean keep ratio.

        Args:
            part: stage of the recipe.
            step: from 0.
            share: which one of the shares of the rows, from 0.
            shares: into how many equal parts the rows are cut, each with every so many'th of them.
        Raises:
            FloatingPointError: a loss is not finite; no gradient has changed.
            HostError: no row can be compressed.
        """
        seed, batch = self.settings.seed, self.settings.batch
        offset = PARTS.index(part) * self.steps(PARTS[0]) * batch  # each stage has its own rows
        numbers = range(offset + step * batch, offset + (step + 1) * batch)[share::shares]
        rows = [self.lessons.lesson(number, seed) for number in numbers]
        draw = stream("keep", seed, part, step).random()
        draw = MILDEST if step < self.method.gentle * self.steps(part) else draw
        with torch.random.fork_rng(devices=[]):
            noise = (seed, part, step, *((share,) if share else ()))
            torch.manual_seed(stream("noise", *noise).getrandbits(63))
            losses, keep = self._losses(part, Batch(self.host, self.stage, rows), draw)
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(f"{part}, step {step}: loss is {float(losses['loss'].detach())}")
        losses["loss"].backward()
        return {name: float(value.detach()) for name, value in losses.items()}, keep

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes the weights that `state` gave."""
        for name, values in state.items():
            getattr(self, name).load_state_dict(values)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All weights that learn."""
        return {name: getattr(self, name).state_dict() for name in ("network", "reconstructor")}

    def _losses(self, part: str, batch: Batch, draw: float) -> tuple[dict[str, Tensor], float]:
        """The losses of a batch by name, and the mean keep ratio. Raises: HostError where no row can be compressed."""
        keeps = [drawn(self.method, shapes, draw) for shapes in batch.shapes]
        rows = [row for row, keep in enumerate(keeps) if keep < 1]
        if not rows:
            raise HostError(f"{self.method.name}: there is no count that it could be trained at on these inputs")
        student, losses = batch.student(self.stage, self.method, keeps, learning=True), {}
        if self.by_features:
            new, old = views(student), views(batch.teacher)
            lanes = [lane for row in rows for lane in batch.start.lanes[row] if old[lane].n]
            pick = [[states[lane] for lane in lanes] for states in (new, old)]
            losses["features"] = feature_loss(*pick, self.reconstructor, isinstance(self.method, Resampler))
        if part == PARTS[0]:
            return losses | {"loss": losses["features"]}, sum(keeps) / len(keeps)
        answers = batch.answers()
        mine, theirs = (logits(p, answers, rows) for p in (student, batch.teacher))
        ids, length = answers.ids[rows], answers.length[rows]
        losses["kl"], _ = answer_losses(mine, theirs, length)
        logprob, _ = judged(mine, ids, length, self.host.ends)
        losses["cross_entropy"] = -(logprob / (length + 1)).mean()
        total = losses["kl"] + CROSS_ENTROPY * losses["cross_entropy"] + ANCHOR * losses.get("features", 0.0)
        for name in self.method.further:
            more = FURTHER[name](self.method, batch, answers, rows)
            total, losses = total + sum(more.values()), losses | more
        return losses | {"loss": total}, sum(keeps) / len(keeps)
