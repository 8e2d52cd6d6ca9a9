"""The numpy forward against a torch twin, and how scores become an action."""

import numpy as np
import pytest
import torch

from foveate.controller.network import HEADS, pick

pytestmark = pytest.mark.fast


class Twin(torch.nn.Module):
    """The same network in torch, float32, as a learner would hold it."""

    def __init__(self, artefact):
        super().__init__()
        self.norm, self.kind, self.shape = artefact.normalisation, artefact.network.kind, artefact.network.shape
        arrays = {k: torch.from_numpy(v) for k, v in artefact.network.arrays.items()}
        layers = []
        for i in range(artefact.network.depth):
            layers += [
                self.linear(arrays, f"trunk.{i}"),
                {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[artefact.network.activation](),
            ]
        self.trunk = torch.nn.Sequential(*layers)
        self.heads = torch.nn.ModuleList(self.linear(arrays, head) for head in HEADS[self.kind])

    @staticmethod
    def linear(arrays, name):
        out, width = arrays[f"{name}.weight"].shape
        layer = torch.nn.Linear(width, out)
        layer.weight.data, layer.bias.data = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
        return layer

    @torch.no_grad()
    def forward(self, x):
        mean, scale = torch.from_numpy(self.norm.mean), torch.from_numpy(self.norm.scale)
        h = self.trunk(((x - mean) / scale).clamp(-self.norm.clip, self.norm.clip))
        first, second = (head(h) for head in self.heads)
        second = second.unflatten(-1, self.shape)
        return first if self.kind == "policy" else first.unflatten(-1, self.shape), second

    def act(self, x, mask, lam):
        first, second = self(x)
        lowest = torch.finfo(torch.float32).min
        if self.kind == "policy":
            row = first.masked_fill(~mask.any(1), lowest).argmax()
            return int(row), int(second[row].masked_fill(~mask[row], lowest).argmax())
        best = int((first - lam * second).masked_fill(~mask, lowest).argmax())
        return divmod(best, mask.shape[1])


def observations(artefact, count, seed=0):
    """Random vectors, the training range's corners, zeros, and values far beyond the normaliser's clip."""
    rng = np.random.default_rng(seed)
    norm = artefact.normalisation
    drawn = rng.normal(norm.mean, 2 * norm.scale, (count, norm.mean.size))
    edges = [norm.low, norm.high, 0 * norm.low, norm.mean, norm.mean + 1e6 * norm.scale, norm.mean - 1e6 * norm.scale]
    return np.vstack([drawn, *edges]).astype(np.float32)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("kind", ["policy", "regression"])
class TestTwin:
    def artefact(self, make_artefact, kind, layers, activation):
        artefact = make_artefact(kind, layers=layers)
        object.__setattr__(artefact.network, "activation", activation)
        return artefact

    def test_scores_agree_with_torch(self, make_artefact, kind, layers, activation):
        artefact = self.artefact(make_artefact, kind, layers, activation)
        x = observations(artefact, 200)
        mine = artefact.network(artefact.normalisation(x))
        theirs = Twin(artefact)(torch.from_numpy(x))
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == np.float32 and a.shape == tuple(b.shape)
            np.testing.assert_allclose(a, b.numpy(), rtol=2e-5, atol=2e-5)

    def test_the_action_is_the_one_of_torch_under_random_masks(self, make_artefact, kind, layers, activation):
        artefact = self.artefact(make_artefact, kind, layers, activation)
        twin, rng = Twin(artefact), np.random.default_rng(7)
        for x in observations(artefact, 150):
            mask = rng.random(artefact.network.shape) < rng.choice([0.05, 0.3, 1.0])
            mask.flat[rng.integers(mask.size)] = True
            mine = pick(kind, artefact.network(artefact.normalisation(x)), mask, 0.3)
            assert mine == twin.act(torch.from_numpy(x), torch.from_numpy(mask), 0.3)
            assert mask[mine]

    def test_a_row_ignores_its_batch_mates(self, make_artefact, kind, layers, activation):
        artefact = self.artefact(make_artefact, kind, layers, activation)
        z = artefact.normalisation(observations(artefact, 9))
        for together, alone in zip(artefact.network(z), artefact.network(z[4]), strict=True):
            np.testing.assert_allclose(together[4], alone, rtol=1e-6, atol=1e-7)


class TestPick:
    def test_a_policy_takes_the_best_legal_method_and_then_its_best_legal_ratio(self):
        method = np.array([0.0, 5.0, 3.0], np.float32)
        ratio = np.array([[9, 9], [1, 2], [7, 4]], np.float32)
        mask = np.array([[True, False], [False, False], [True, True]])
        assert pick("policy", (method, ratio), mask, 1.0) == (2, 0)
        mask[1, 0] = True  # its better ratio stays illegal
        assert pick("policy", (method, ratio), mask, 1.0) == (1, 0)

    def test_ties_go_to_the_lower_index(self):
        flat = np.zeros(4, np.float32), np.zeros((4, 3), np.float32)
        mask = np.ones((4, 3), bool)
        mask[0] = mask[1, 0] = False
        assert pick("policy", flat, mask, 1.0) == (1, 1)
        assert pick("regression", (flat[1], flat[1]), mask, 1.0) == (1, 1)

    def test_a_regression_moves_to_cheaper_plans_as_lambda_rises(self):
        quality = np.array([[1.0], [0.9], [0.5]], np.float32)
        cost = np.array([[1.0], [0.4], [0.1]], np.float32)
        mask = np.ones((3, 1), bool)
        rows = [pick("regression", (quality, cost), mask, lam)[0] for lam in (0.0, 0.1, 0.2, 1.0, 2.0)]
        assert rows == [0, 0, 1, 1, 2]  # the hull's slopes: 0.1 / 0.6 and 0.4 / 0.3

    def test_equal_rows_of_weights_tie_exactly(self, make_artefact):
        artefact = make_artefact("policy")
        for head in ("method", "ratio"):
            artefact.network.arrays[f"{head}.weight"][:] = artefact.network.arrays[f"{head}.weight"][0]
            artefact.network.arrays[f"{head}.bias"][:] = 0.25
        mask = np.ones(artefact.network.shape, bool)
        mask[0] = False
        for x in observations(artefact, 50):
            assert pick("policy", artefact.network(artefact.normalisation(x)), mask, 1.0) == (1, 0)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("method.weight", None, "'method.weight': expected .* found nothing"),
        ("trunk.1.bias", None, r"'trunk.1.bias': expected \(16,\), found nothing"),
        ("trunk.0.weight", None, "'trunk.0.weight': expected .* found nothing"),
        ("ratio.bias", (3,), r"'ratio.bias': expected \(25,\), found \(3,\)"),
        ("trunk.0.weight", (16, 5), r"'trunk.0.weight': expected \(16, 87\), found \(16, 5\)"),
        ("extra", (1,), "'extra': expected nothing"),
    ],
)
def test_arrays_that_do_not_fit_are_named(make_artefact, name, shape, message):
    artefact = make_artefact("policy")
    if shape is None:
        del artefact.network.arrays[name]
    else:
        artefact.network.arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        artefact.network.check(artefact.layout.size)
