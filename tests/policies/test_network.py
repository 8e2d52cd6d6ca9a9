import numpy as np
import pytest
import torch
from gymnasium import spaces

from foveate.controller.network import pick
from foveate.policies.network import MethodThenRatio, PlanPolicy
from foveate.policies.standard import Standard
from foveate.policies.views import vectors, with_head

pytestmark = pytest.mark.fast

METHOD = torch.log(torch.tensor([[1.0, 3.0, 6.0]]))
RATIO = torch.log(torch.tensor([[[1.0, 1.0], [1.0, 3.0], [2.0, 2.0]]]))
MASK = torch.tensor([[[True, False], [True, True], [False, False]]])


def given(rows=1, mask=MASK):
    return MethodThenRatio().proba_distribution(
        METHOD.repeat(rows, 1), RATIO.repeat(rows, 1, 1), mask.repeat(rows, 1, 1)
    )


def space(d=5, m=3, r=2):
    vector = spaces.Box(-np.inf, np.inf, (d,), np.float32)
    return spaces.Dict({"vector": vector, "mask": spaces.MultiBinary((m, r))}), spaces.MultiDiscrete([m, r])


def policy(widths=(8,), standard=None, d=5, m=3, r=2):
    torch.manual_seed(0)
    return PlanPolicy(*space(d, m, r), lambda _: 1e-3, widths=widths, standard=standard)


def test_probabilities_by_hand():
    # method 2 has no legal ratio: 1/4 and 3/4 remain; of method 0 one ratio is legal, of method 1 1/4 and 3/4
    pairs = torch.tensor([[0, 0], [1, 0], [1, 1]])
    distribution = given(3)
    assert distribution.log_prob(pairs).exp().tolist() == pytest.approx([1 / 4, 3 / 16, 9 / 16])


def test_entropy_by_hand():
    p = np.array([1 / 4, 3 / 16, 9 / 16])
    assert given().entropy().item() == pytest.approx(float(-(p * np.log(p)).sum()), abs=1e-6)


def test_the_divergence_is_that_of_the_pairs():
    p = np.array([1 / 4, 3 / 16, 9 / 16])
    q = np.array([1 / 2, 1 / 4, 1 / 4])
    other = MethodThenRatio().proba_distribution(torch.zeros(1, 3), torch.zeros(1, 3, 2), MASK)
    assert given().divergence(other).item() == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-6)
    assert given().divergence(given()).item() == 0.0


def test_what_is_masked_has_probability_zero_and_is_never_drawn():
    distribution = given(2000)
    joint = (distribution.method[:, :, None] + distribution.ratio).exp()
    assert joint[0][~MASK[0]].tolist() == [0.0] * 3
    torch.manual_seed(0)
    m, r = distribution.sample().unbind(dim=1)
    assert MASK[0][m, r].all()
    assert (m == 1).float().mean().item() == pytest.approx(0.75, abs=0.04)
    assert r[m == 1].float().mean().item() == pytest.approx(0.75, abs=0.04)


def test_the_mode_is_the_best_method_and_then_its_best_ratio():
    assert given().mode().tolist() == [[1, 1]]
    everything = torch.ones(1, 3, 2, dtype=torch.bool)
    tied = MethodThenRatio().proba_distribution(torch.zeros(1, 3), torch.zeros(1, 3, 2), everything)
    assert tied.mode().tolist() == [[0, 0]]


def test_a_single_legal_action_is_certain():
    mask = torch.zeros(1, 3, 2, dtype=torch.bool)
    mask[0, 2, 1] = True
    distribution = given(mask=mask)
    assert distribution.sample().tolist() == distribution.mode().tolist() == [[2, 1]]
    assert distribution.entropy().item() == pytest.approx(0.0, abs=1e-6)
    assert distribution.log_prob(torch.tensor([[2, 1]])).item() == pytest.approx(0.0, abs=1e-6)


def test_gradients_stay_finite_under_a_mask():
    method, ratio = METHOD.clone().requires_grad_(), RATIO.clone().requires_grad_()
    distribution = MethodThenRatio().proba_distribution(method, ratio, MASK)
    (distribution.log_prob(torch.tensor([[1, 0]])) + distribution.entropy()).sum().backward()
    assert torch.isfinite(method.grad).all() and torch.isfinite(ratio.grad).all()
    assert method.grad[0, 2] == 0 and ratio.grad[0, 2].tolist() == [0, 0]


def test_forward_and_evaluation_agree():
    net = policy()
    obs = {"vector": torch.randn(50, 5), "mask": MASK.repeat(50, 1, 1).float()}
    actions, values, log_prob = net(obs)
    again, same, entropy = net.evaluate_actions(obs, actions.float())
    assert torch.equal(values, again) and torch.equal(log_prob, same)
    assert values.shape == (50, 2) and entropy.shape == (50,)
    assert torch.equal(net.predict_values(obs), values)


def test_predict_is_the_mode_in_the_shape_that_sb3_users_expect():
    net = policy()
    obs = {"vector": np.zeros(5, np.float32), "mask": MASK[0].numpy().astype(np.int8)}
    action, _ = net.predict(obs, deterministic=True)
    assert action.shape == (2,)
    assert MASK[0][tuple(action)]


def test_the_exported_network_decides_as_the_policy_does(toy):
    table = toy.table(200)
    standard = Standard.fit(table)
    net = policy((16, 12), standard, standard.layout.size, 4, 3)
    for head in net.heads.values():  # far from uniform
        torch.nn.init.normal_(head.weight, std=2.0)
    rng = np.random.default_rng(0)
    x = with_head(vectors(table, standard.layout, ("pixels", "question")), "input", 0.5, np.zeros(200))
    mask = rng.random((200, 4, 3)) < 0.5
    mask[:, 0, 0] = True
    actions, _ = net.predict({"vector": x, "mask": mask.astype(np.int8)}, deterministic=True)
    exported = net.export()
    exported.check(standard.layout.size)
    method, ratio = exported(standard.normalisation(x))
    picked = [pick("policy", (method[i], ratio[i]), mask[i], 0.5) for i in range(200)]
    assert picked == [tuple(action) for action in actions.tolist()]


def test_an_export_does_not_change_with_further_training(toy):
    standard = Standard.fit(toy.table(20))
    net = policy(standard=standard, d=standard.layout.size)
    exported = net.export()
    before = {name: array.copy() for name, array in exported.arrays.items()}
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(1.0)
    assert all(np.array_equal(array, before[name]) for name, array in exported.arrays.items())


def test_an_export_needs_the_standardisation():
    with pytest.raises(ValueError, match="without the standardisation"):
        policy().export()
