"""The policy network of PPO: a method head, then a ratio head given the method, both masked, and two critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from foveate.controller import Network
from foveate.policies.standard import Standard

ILLEGAL = -1e9
"""Logit of what the mask forbids: its probability is exactly 0 in float32, and 0 times its logarithm still is 0."""


class MethodThenRatio(Distribution):
    """p(m, r) = p(m) p(r | m) over the legal pairs.

    Formula: p(m) = softmax over methods with a legal ratio; p(r | m) = softmax over the legal ratios of m;
             entropy = H(m) + sum over m of p(m) H(r | m)
    """

    def proba_distribution_net(self, width: int, methods: int, ratios: int) -> nn.ModuleDict:
        """The two heads on a latent of `width`: "method" (M,) and "ratio" (M * R,)."""
        return nn.ModuleDict({"method": nn.Linear(width, methods), "ratio": nn.Linear(width, methods * ratios)})

    def proba_distribution(self, method: Tensor, ratio: Tensor, mask: Tensor) -> MethodThenRatio:
        """Sets the logits.

        Args:
            method: (B, M) logits.
            ratio: (B, M, R) logits.
            mask: (B, M, R) bool, at least one True a row.
        """
        self.method = method.masked_fill(~mask.any(dim=-1), ILLEGAL).log_softmax(dim=-1)
        self.ratio = ratio.masked_fill(~mask, ILLEGAL).log_softmax(dim=-1)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """(B,) log-probability of (B, 2) actions."""
        m, r = actions.long().unbind(dim=1)
        rows = torch.arange(len(m), device=m.device)
        return self.method[rows, m] + self.ratio[rows, m, r]

    def entropy(self) -> Tensor:
        """(B,) in nats, exact."""
        p, q = self.method.exp(), self.ratio.exp()
        return -(p * self.method).sum(dim=-1) - (p * (q * self.ratio).sum(dim=-1)).sum(dim=-1)

    def divergence(self, other: MethodThenRatio) -> Tensor:
        """(B,) KL divergence of this distribution from another under the same mask, in nats, exact."""
        p, q = self.method.exp(), self.ratio.exp()
        inner = (q * (self.ratio - other.ratio)).sum(dim=-1)
        return (p * (self.method - other.method + inner)).sum(dim=-1)

    def sample(self) -> Tensor:
        """(B, 2) int64 drawn actions."""
        m = torch.multinomial(self.method.exp(), 1)[:, 0]
        r = torch.multinomial(self.ratio[torch.arange(len(m)), m].exp(), 1)[:, 0]
        return torch.stack([m, r], dim=1)

    def mode(self) -> Tensor:
        """(B, 2) int64: best method, then its best ratio, as an exported controller picks; ties to the lower index."""
        m = self.method.argmax(dim=-1)
        return torch.stack([m, self.ratio[torch.arange(len(m)), m].argmax(dim=-1)], dim=1)

    def actions_from_params(self, *args: Tensor, deterministic: bool = False) -> Tensor:
        """Actions of a distribution with these logits and mask."""
        return self.proba_distribution(*args).get_actions(deterministic)

    def log_prob_from_params(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn actions and their log-probabilities."""
        actions = self.actions_from_params(*args)
        return actions, self.log_prob(actions)


class Standardise(BaseFeaturesExtractor):
    """The observation's vector, standardised; the mask is read by the heads alone.

    Args:
        observation_space: with "vector" (D,).
        standard: statistics; None = the vector as it is.
    """

    def __init__(self, observation_space: spaces.Dict, standard: Standard | None = None) -> None:
        super().__init__(observation_space, observation_space["vector"].shape[0])
        self.standard = standard

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        x = observations["vector"].float()
        return x if self.standard is None else self.standard(x)


class PlanPolicy(ActorCriticPolicy):
    """Actor and critics, each a tanh MLP of its own, on {"vector": (D,), "mask": (M, R)}; actions are (method, ratio).

    Args:
        observation_space: as above.
        action_space: MultiDiscrete([M, R]).
        lr_schedule: of the optimizer, by SB3.
        widths: hidden units of actor and critic.
        standard: standardisation of the vector; None = none, and no export.
        kwargs: SB3's own.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.MultiDiscrete,
        lr_schedule: Any,
        widths: Sequence[int] = (64, 64),
        standard: Standard | None = None,
        **kwargs: Any,
    ) -> None:
        self.widths, self.standard = tuple(widths), standard
        self.methods, self.ratios = (int(n) for n in action_space.nvec)
        kwargs |= {"features_extractor_class": Standardise, "features_extractor_kwargs": {"standard": standard}}
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = MethodThenRatio()
        self.trunk, width = _mlp(self.features_dim, self.widths)
        self.heads = self.action_dist.proba_distribution_net(width, self.methods, self.ratios)
        self.critic, width = _mlp(self.features_dim, self.widths)
        self.value_net = nn.Linear(width, 2)  # quality to come, cost share to come
        for module, gain in ((self.trunk, 2**0.5), (self.critic, 2**0.5), (self.heads, 0.01), (self.value_net, 1.0)):
            module.apply(lambda layer, gain=gain: self.init_weights(layer, gain))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def distribution(self, obs: dict[str, Tensor], z: Tensor) -> MethodThenRatio:
        """The action distribution, from the raw observation (for its mask) and the standardised vector."""
        h = self.trunk(z)
        ratio = self.heads["ratio"](h).view(-1, self.methods, self.ratios)
        return self.action_dist.proba_distribution(self.heads["method"](h), ratio, obs["mask"] > 0.5)

    def forward(self, obs: dict[str, Tensor], deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B, 2), values (B, 2) of quality and cost to come, log-probabilities (B,)."""
        z = self.features_extractor(obs)
        distribution = self.distribution(obs, z)
        actions = distribution.get_actions(deterministic)
        return actions, self.value_net(self.critic(z)), distribution.log_prob(actions)

    def evaluate_actions(self, obs: dict[str, Tensor], actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 2), log-probabilities (B,) of given actions, entropy (B,)."""
        z = self.features_extractor(obs)
        distribution = self.distribution(obs, z)
        return self.value_net(self.critic(z)), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: dict[str, Tensor]) -> MethodThenRatio:
        """The action distribution."""
        return self.distribution(obs, self.features_extractor(obs))

    def predict_values(self, obs: dict[str, Tensor]) -> Tensor:
        """(B, 2) quality and cost share to come."""
        return self.value_net(self.critic(self.features_extractor(obs)))

    def export(self) -> Network:
        """The actor as the network of a controller. Raises: ValueError without a standardisation."""
        if self.standard is None:
            raise ValueError("export: this policy was built without the standardisation that an artefact needs")
        layers = [layer for layer in self.trunk if isinstance(layer, nn.Linear)]
        arrays: dict[str, np.ndarray] = {}
        for i, layer in enumerate(layers):
            arrays[f"trunk.{i}.weight"], arrays[f"trunk.{i}.bias"] = _numpy(layer)
        first = self.standard.fold(arrays["trunk.0.weight"], arrays["trunk.0.bias"])
        arrays["trunk.0.weight"], arrays["trunk.0.bias"] = first
        for name, head in self.heads.items():
            arrays[f"{name}.weight"], arrays[f"{name}.bias"] = _numpy(head)
        return Network("policy", (self.methods, self.ratios), "tanh", arrays)


def _numpy(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    """Copies of weight and bias: training goes on in place."""
    return layer.weight.detach().cpu().numpy().copy(), layer.bias.detach().cpu().numpy().copy()


def _mlp(size: int, widths: Sequence[int]) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(size, width), nn.Tanh()]
        size = width
    return nn.Sequential(*layers), size
