"""Full-information regression: the probability that each plan answers right, from the features seen so far.

An ensemble of small MLPs, trained on every (input, plan) cell of a replay table, at every stop at once. It can be
exported exactly: sigmoid(z) = (1 + tanh(z / 2)) / 2, so the ensemble's mean probability is a linear head on a tanh
layer, which is the "regression" network of a controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.controller import Network
from foveate.controller.observation import GROUPS
from foveate.policies.standard import Standard
from foveate.policies.views import stops, vectors
from foveate.rollouts.table import Table


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is trained.

    Args:
        members: networks whose probabilities are averaged.
        width: units of each of the two hidden layers of a member.
        epochs: most passes over the training inputs.
        patience: epochs without a better validation loss before it stops; the best epoch's weights stay.
        batch: inputs per step, every stop of each; fewer on a small table, see `fitting`.
        learning_rate: of AdamW, falling to 0 over `epochs` on a cosine.
        weight_decay: of AdamW.
        dropout: share of hidden units left out in training.
        noise: standard deviation of what is added to each standardised feature in training: small tables are
            remembered otherwise.
        soft: weight of the answer's probability in the target, beside exact match.
    """

    members: int = 4
    width: int = 48
    epochs: int = 80
    patience: int = 8
    batch: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    noise: float = 0.5
    soft: float = 0.5


class Ensemble(nn.Module):
    """E members of D -> width -> width -> P, evaluated together.

    Args:
        members, size, width, plans: E, D, hidden units, P.
    """

    def __init__(self, members: int, size: int, width: int, plans: int) -> None:
        super().__init__()
        shapes = [(size, width), (width, width), (width, plans)]
        self.weights = nn.ParameterList(torch.randn(members, *shape) / shape[0] ** 0.5 for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(members, 1, shape[1]) for shape in shapes)

    def forward(self, z: Tensor, dropout: float = 0.0) -> Tensor:
        """(B, D) standardised observations -> (E, B, P) logits."""
        h = z.expand(len(self.weights[0]), *z.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i < 2:
                h = F.dropout(torch.tanh(h), dropout, self.training)
        return h


class PlanRegression:
    """P(correct) per plan from the groups seen so far.

    Args:
        train: the inputs to learn from.
        validation: inputs of other families, for early stopping.
        recipe: how.
        seed: of initial weights, order and dropout.
        groups: feature groups that it may read.
        name: for reports.

    Attributes:
        standard: the standardisation.
        cost: (P,) mean cost share per plan on the training inputs: known before acting.
        losses: (epoch, training loss, validation loss), mean cross-entropy per cell in nats.
    """

    def __init__(
        self,
        train: Table,
        validation: Table,
        recipe: Recipe | None = None,
        *,
        seed: int = 0,
        groups: Sequence[str] = GROUPS,
        name: str = "regression",
    ) -> None:
        if not validation.n:
            raise ValueError("regression: the validation table holds no input, and training stops by it")
        self.recipe, self.name = recipe or Recipe(), name
        self.standard = Standard.fit(train, head=(), groups=groups)
        self.cost = train.share.mean(axis=0)
        self.losses: list[tuple[int, float, float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Ensemble(self.recipe.members, self.standard.layout.size, self.recipe.width, train.p)
            self._fit(train, validation)
        self.network = self._export()

    @property
    def flops(self) -> int:
        """FLOPs of one decision: every matrix of the exported network, 2 per weight."""
        return network_flops(self.network)

    def predict(self, table: Table, groups: Sequence[str]) -> np.ndarray:
        """(N, P) float32 probability of a right answer, with these groups seen; by the network that is exported."""
        x = vectors(table, self.standard.layout, groups)
        normalisation = self.standard.normalisation
        parts = [self.network(normalisation(x[i : i + 1024]))[0][..., 0] for i in range(0, len(x), 1024)]
        return np.concatenate(parts) if parts else np.zeros((0, table.p), np.float32)

    def _fit(self, train: Table, validation: Table) -> None:
        recipe = self.recipe
        views = list(dict.fromkeys(stops(train.plans).values()))
        data = [self._arrays(table, views) for table in (train, validation)]
        (x, y), (x_val, y_val) = data
        optimizer = torch.optim.AdamW(self.net.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        batch = fitting(recipe.batch, train.n)
        steps = -(-train.n // batch) * recipe.epochs
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, best_loss, best_epoch = None, float("inf"), 0
        for epoch in range(1, recipe.epochs + 1):
            self.net.train()
            total = 0.0
            for rows in torch.randperm(train.n).split(batch):
                optimizer.zero_grad()
                z = x[:, rows].flatten(0, 1)
                z = z + recipe.noise * torch.randn_like(z) * (z != 0)  # what is unseen stays 0
                loss = self._loss(z, y[rows].repeat(len(views), 1), recipe.dropout)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows) / train.n
            self.net.eval()
            with torch.no_grad():
                mean = torch.sigmoid(self.net(x_val.flatten(0, 1))).mean(dim=0)
                val = F.binary_cross_entropy(mean, y_val.repeat(len(views), 1)).item()
            self.losses.append((epoch, total, val))
            if val < best_loss:
                best, best_loss, best_epoch = {k: v.clone() for k, v in self.net.state_dict().items()}, val, epoch
            elif epoch - best_epoch >= recipe.patience:
                break
        if best is None:
            raise ValueError("regression: the validation loss was never a number")
        self.net.load_state_dict(best)

    def _arrays(self, table: Table, views: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Standardised observations (views, N, D) and targets (N, P)."""
        layout, soft = self.standard.layout, self.recipe.soft
        x = torch.stack([self.standard(torch.from_numpy(vectors(table, layout, groups))) for groups in views])
        return x, torch.from_numpy(((1 - soft) * table.correct + soft * table.prob.clip(0, 1)).astype(np.float32))

    def _loss(self, z: Tensor, y: Tensor, dropout: float) -> Tensor:
        logits = self.net(z, dropout)
        return F.binary_cross_entropy_with_logits(logits, y.expand_as(logits))

    def _export(self) -> Network:
        """The ensemble as one network of a controller: blocks side by side, averaged by the head."""
        weights = [weight.detach().numpy().astype(np.float64) for weight in self.net.weights]  # (E, in, out)
        biases = [bias.detach().numpy().astype(np.float64)[:, 0] for bias in self.net.biases]  # (E, out)
        members, plans = len(weights[0]), weights[2].shape[2]
        first, bias = self.standard.fold(np.concatenate([w.T for w in weights[0]]), biases[0].reshape(-1))
        arrays = {"trunk.0.weight": first, "trunk.0.bias": bias}
        for i, factor in ((1, 1.0), (2, 0.5)):  # tanh(z / 2) for the sigmoid
            arrays[f"trunk.{i}.weight"] = factor * _blocks([w.T for w in weights[i]])
            arrays[f"trunk.{i}.bias"] = factor * biases[i].reshape(-1)
        arrays["quality.weight"] = np.tile(np.eye(plans), members) * (0.5 / members)
        arrays["quality.bias"] = np.full(plans, 0.5)
        arrays["cost.weight"], arrays["cost.bias"] = np.zeros((plans, members * plans)), self.cost
        return Network("regression", (plans, 1), "tanh", {k: v.astype(np.float32) for k, v in arrays.items()})


def fitting(batch: int, n: int, steps: int = 16, least: int = 32) -> int:
    """The batch that gives an epoch over n rows `steps` steps, between `least` and `batch`."""
    return min(batch, max(least, n // steps))


def network_flops(network: Network) -> int:
    """FLOPs of one decision of an exported network: 2 per weight."""
    return int(sum(2 * array.size for name, array in network.arrays.items() if name.endswith(".weight")))


def _blocks(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A block-diagonal matrix."""
    rows, columns = parts[0].shape
    out = np.zeros((rows * len(parts), columns * len(parts)))
    for i, part in enumerate(parts):
        out[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = part
    return out
