"""The same network for ONNX Runtime: an optional faster forward with the same arg-max.

The graph computes in float64 and rounds to float32 at its end, as `Network` does, from the normalised observation to
the two heads. A flipped bit in an ONNX file loads without complaint, so the controller file holds the SHA-256 of the
graph written beside it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from foveate.controller.artefact import Artefact, ControllerError
from foveate.controller.network import HEADS, Network

OPSET = 18
IR_VERSION = 10


def write_onnx(path: str | Path, network: Network) -> str:
    """Writes the graph of a network (needs the `onnx` package): input "z" (N, D), outputs named as the heads.

    Returns:
        The file's SHA-256 in hexadecimal, for `Artefact.onnx_sha256`.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(a.astype(np.float64), name) for name, a in sorted(network.arrays.items())]
    nodes, here = [], "z"
    for layer in range(network.depth):
        nodes.append(helper.make_node("Gemm", [here, *_names(f"trunk.{layer}")], [f"sum.{layer}"], transB=1))
        here = f"act.{layer}"
        nodes.append(helper.make_node(network.activation.capitalize(), [f"sum.{layer}"], [here]))
    outputs = []
    for head in HEADS[network.kind]:
        nodes.append(helper.make_node("Gemm", [here, *_names(head)], [f"{head}.sum"], transB=1))
        nodes.append(helper.make_node("Cast", [f"{head}.sum"], [head], to=TensorProto.FLOAT))
        width = network.arrays[f"{head}.bias"].size
        outputs.append(helper.make_tensor_value_info(head, TensorProto.FLOAT, ["batch", width]))
    first = "trunk.0.weight" if network.depth else f"{HEADS[network.kind][0]}.weight"
    z = helper.make_tensor_value_info("z", TensorProto.DOUBLE, ["batch", network.arrays[first].shape[1]])
    graph = helper.make_graph(nodes, "controller", [z], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    data = model.SerializeToString(deterministic=True)
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


class OnnxNetwork:
    """The forward of an artefact's network in ONNX Runtime, for `Controller(artefact, network=...)`; one thread.

    Args:
        path: the .onnx file.
        artefact: the controller that it was exported with.

    Raises:
        ControllerError: the file cannot be read, or is not the one that the controller was exported with.
        ImportError: ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, artefact: Artefact) -> None:
        import onnxruntime

        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ControllerError(f"{path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != artefact.onnx_sha256:
            raise ControllerError(f"{path}: not the graph that this controller was exported with (SHA-256 differs)")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # more would spin beside the model's threads
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._kind, self._shape = artefact.network.kind, artefact.network.shape

    def __call__(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Network.__call__`."""
        flat = np.ascontiguousarray(z.reshape(-1, z.shape[-1]), np.float64)
        first, second = self._session.run(list(HEADS[self._kind]), {"z": flat})
        both = (*z.shape[:-1], *self._shape)
        return first.reshape((*z.shape[:-1], -1) if self._kind == "policy" else both), second.reshape(both)


def _names(layer: str) -> tuple[str, str]:
    return f"{layer}.weight", f"{layer}.bias"
