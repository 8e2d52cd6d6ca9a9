"""The ONNX graph of a controller: the same actions, and no other graph is taken for it."""

from dataclasses import replace

import numpy as np
import pytest

from foveate.controller import Controller, ControllerError
from foveate.controller.network import pick
from foveate.controller.onnx import OnnxNetwork, write_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.fast


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("kind", ["policy", "regression"])
def test_the_graph_takes_the_actions_of_numpy(tmp_path, make_artefact, kind, activation, layers):
    artefact = make_artefact(kind, layers=layers)
    network = replace(artefact.network, activation=activation)
    artefact = replace(artefact, network=network, onnx_sha256=write_onnx(tmp_path / "tiny.onnx", network))
    graph, rng = OnnxNetwork(tmp_path / "tiny.onnx", artefact), np.random.default_rng(1)
    z = artefact.normalisation(rng.normal(0, 3, (200, artefact.layout.size)))
    for mine, theirs in zip(network(z), graph(z), strict=True):
        assert theirs.shape == mine.shape and theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, mine, rtol=1e-6, atol=1e-6)
    for row in (*z, np.zeros_like(z[0]), np.full_like(z[0], 10.0)):
        mask = rng.random(network.shape) < 0.5
        mask[0, 0] = True
        assert pick(kind, graph(row), mask, 0.3) == pick(kind, network(row), mask, 0.3)


def test_a_controller_decides_through_the_graph(tmp_path, make_artefact, groups):
    from foveate.controller import Progress

    artefact = make_artefact()
    artefact = replace(artefact, onnx_sha256=write_onnx(tmp_path / "tiny.onnx", artefact.network))
    mask = artefact.table.legal("outside")
    decisions = [
        Controller(artefact, network=network).decide_stop("outside", groups, Progress(), mask)
        for network in (None, OnnxNetwork(tmp_path / "tiny.onnx", artefact))
    ]
    assert decisions[0] == decisions[1] and decisions[0].reason == "policy"


def test_another_graph_is_refused(tmp_path, make_artefact):
    artefact, path = make_artefact(), tmp_path / "tiny.onnx"
    sealed = replace(artefact, onnx_sha256=write_onnx(path, artefact.network))
    with pytest.raises(ControllerError, match="not the graph"):
        OnnxNetwork(path, artefact)  # exported without one
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ControllerError, match="tiny.onnx: not the graph that this controller was exported with"):
        OnnxNetwork(path, sealed)
    path.unlink()
    with pytest.raises(ControllerError, match="cannot be read: No such file"):
        OnnxNetwork(path, sealed)
