"""Muon with the orthogonalisation in float32.

`torch.optim.Muon` casts to bfloat16 inside, which a CPU without bfloat16 instructions emulates some seventy times
slower than float32. Matrices of one shape are orthogonalised together, as one batched product.

Source: Jordan et al., https://kellerjordan.github.io/posts/muon/; learning rates matched to AdamW's update size after
https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, about: a quintic Newton-Schulz iteration on (M, R, C) float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.transpose(1, 2) if g.shape[1] > g.shape[2] else g
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if g.shape[1] > g.shape[2] else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalisation, for weight matrices.

    Args:
        params: 2-D parameters.
        lr: comparable with AdamW's.
        momentum: Nesterov momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                update = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    update.append(p.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, u in zip(params, orthogonalise(torch.stack(update)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-scale)
