"""The file of a controller: everything that a decision needs, in one place, without pickle.

    b"foveate controller\n"     19 bytes
    total, header               2 x uint64, little-endian: bytes of the whole file and of the header
    header                      canonical JSON, UTF-8, no NaN or Infinity, padded with spaces to 64 bytes
    arrays                      raw little-endian float32, in the header's order
    SHA-256                     32 bytes, over all bytes before

The same artefact gives the same bytes. A file is read completely, its digest is compared before anything in it is
believed, and every array is checked against the network, the observation layout and the action table; what does not fit
is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from foveate.controller import dial
from foveate.controller.network import Network, Normalisation
from foveate.controller.observation import TOKEN_GROUPS, Layout, check_order
from foveate.plans.plan import UNCOMPRESSED, Plan
from foveate.plans.portfolio import ActionTable, Portfolio

MAGIC = b"foveate controller\n"
VERSION = 1
_FRAME = struct.Struct("<QQ")
_START = len(MAGIC) + _FRAME.size
_DIGEST = 32
_NORMALISATION = ("mean", "scale", "low", "high")


class ControllerError(ValueError):
    """A controller file that must not be used: one line, what and where."""


@dataclass(frozen=True)
class Artefact:
    """A controller as data. A controller is any function from features and mask to an action.

    Attributes:
        layout: order of the observation.
        normalisation: its statistics.
        network: "policy" or "regression" weights; `network.kind` is the kind of the controller.
        actions: what a row and a level of the action mean: an action table as plain data or, for a controller that
            chooses the whole plan at once, {"plans": [plan as plain data, ...]}, the uncompressed plan first and R = 1.
        portfolio: the portfolio as plain data.
        host: name of the model that it was trained for.
        fingerprint: that host's fingerprint.
        calibration: (lambda, mean cost as a share of the uncompressed FLOPs) by rising lambda, for the budget dial.
        lam: default lambda.
        outside_limit: share of the revealed features that may lie outside the training range.
        provenance: seed, library versions, config: plain data, for the reader.
        onnx_sha256: digest of the ONNX graph exported beside it; empty = none was.
    """

    layout: Layout
    normalisation: Normalisation
    network: Network
    actions: Mapping[str, Any]
    portfolio: Mapping[str, Any]
    host: str
    fingerprint: str
    lam: float
    calibration: tuple[tuple[float, float], ...] = ()
    outside_limit: float = 0.1
    provenance: Mapping[str, Any] = field(default_factory=dict)
    onnx_sha256: str = ""

    @cached_property
    def table(self) -> ActionTable | None:
        """The action table; None where rows are plans."""
        return None if "plans" in self.actions else ActionTable.from_dict(self.actions)

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that the rows stand for; empty where rows are methods."""
        return tuple(Plan.from_dict(plan) for plan in self.actions.get("plans", ()))

    def check(self) -> None:
        """Raises: ValueError naming the part that does not fit the others."""
        self.normalisation.check(self.layout.size)
        self.network.check(self.layout.size)
        dial.check(self.calibration)
        table = self.table
        shape = (len(self.plans), 1) if table is None else table.shape
        if shape != tuple(self.network.shape):
            raise ValueError(f"actions: the table has {shape} (rows, levels), the network {tuple(self.network.shape)}")
        if table is None and self.plans[:1] != (UNCOMPRESSED,):
            raise ValueError("actions: the first plan must be the uncompressed one, the safe choice")
        if table is not None and table != ActionTable.from_portfolio(Portfolio.from_dict(self.portfolio)):
            raise ValueError("actions: the action table is not the one of the portfolio")
        if not all(isinstance(text, str) for text in (self.host, self.fingerprint, self.onnx_sha256)):
            raise ValueError("host, fingerprint and onnx_sha256 must be texts")
        if not 0 < self.lam < np.inf or not 0 <= self.outside_limit <= 1:
            raise ValueError(f"lam {self.lam} must be positive, outside_limit {self.outside_limit} in [0, 1]")


def save(path: str | Path, artefact: Artefact) -> str:
    """Writes a controller in one step: a reader sees the old file or the new one, never a part.

    Returns:
        The file's SHA-256 in hexadecimal.

    Raises:
        ControllerError: the parts do not fit each other, or plain data holds what JSON does not.
    """
    path = Path(path)
    try:
        artefact.check()
        body = _pack(artefact)
    except (ValueError, TypeError, KeyError) as error:
        raise ControllerError(f"{path}: not written: {error}") from error
    digest = hashlib.sha256(body)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp hides the file from other users; a controller is no secret
            file.write(body + digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name survives a power cut too
    finally:
        os.close(folder)
    return digest.hexdigest()


def load(
    path: str | Path,
    *,
    fingerprint: str | None = None,
    token_features: Mapping[str, Sequence[str]] | None = None,
) -> Artefact:
    """Reads a controller.

    Args:
        path: the file.
        fingerprint: the fingerprint of the host at hand; None = not compared.
        token_features: names that the host at hand computes per token group, in order; None = not compared.

    Raises:
        ControllerError: unreadable, not a controller, truncated, altered, of another version, with features that this
            code or host computes otherwise, inconsistent, or made for another host.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ControllerError(f"{path}: cannot be read: {error.strerror}") from error
    header, body = _open(path, data)
    if header.get("version") != VERSION:
        _refuse(path, f"version {header.get('version')!r} of the format, this code reads {VERSION}")
    try:
        artefact = _unpack(header, body)
        artefact.check()
        for group in TOKEN_GROUPS if token_features is not None else ():
            names = header["layout"]["groups"][group]
            check_order(group, names, tuple(token_features.get(group, ())))
    except KeyError as error:
        raise ControllerError(f"{path}: header: {error.args[0]!r} is missing") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ControllerError(f"{path}: {error}") from error
    if fingerprint is not None and fingerprint != artefact.fingerprint:
        mine, theirs = fingerprint[:12], artefact.fingerprint[:12]
        _refuse(path, f"made for host {artefact.host!r} ({theirs}...), this host is {mine}...")
    return artefact


def _refuse(path: str | Path, reason: str) -> NoReturn:
    raise ControllerError(f"{path}: {reason}")


def _pack(artefact: Artefact) -> bytes:
    """Everything before the digest."""
    arrays = {f"network.{name}": artefact.network.arrays[name] for name in sorted(artefact.network.arrays)}
    arrays |= {f"normalisation.{name}": getattr(artefact.normalisation, name) for name in _NORMALISATION}
    header = {
        "version": VERSION,
        "layout": artefact.layout.to_dict(),
        "normalisation": {"clip": float(artefact.normalisation.clip)},
        "network": {
            "kind": artefact.network.kind,
            "shape": [int(n) for n in artefact.network.shape],
            "activation": artefact.network.activation,
        },
        "actions": artefact.actions,
        "portfolio": artefact.portfolio,
        "host": {"name": artefact.host, "fingerprint": artefact.fingerprint},
        "dial": {"lam": float(artefact.lam), "calibration": [[float(a), float(b)] for a, b in artefact.calibration]},
        "outside_limit": float(artefact.outside_limit),
        "provenance": artefact.provenance,
        "onnx_sha256": artefact.onnx_sha256,
        "arrays": [[name, list(values.shape)] for name, values in arrays.items()],
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-(_START + len(text)) % 64)
    raw = b"".join(np.ascontiguousarray(values, "<f4").tobytes() for values in arrays.values())
    total = _START + len(text) + len(raw) + _DIGEST
    return MAGIC + _FRAME.pack(total, len(text)) + text + raw


def _open(path: str | Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and raw arrays of a whole, unaltered file."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        _refuse(path, "not a controller file")
    if len(data) < _START:
        _refuse(path, f"truncated: {len(data)} bytes")
    total, length = _FRAME.unpack_from(data, len(MAGIC))
    if len(data) < total:
        _refuse(path, f"truncated: {len(data)} bytes of {total}")
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:] or len(data) != total:
        _refuse(path, "altered: the SHA-256 at its end does not fit its content")
    if not 0 < length <= total - _START - _DIGEST:
        _refuse(path, f"header: {length} bytes do not fit a file of {total}")
    try:
        header = json.loads(data[_START : _START + length].decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ControllerError(f"{path}: header: {error}") from error
    if not isinstance(header, dict):
        _refuse(path, "header: not a JSON object")
    return header, data[_START + length : -_DIGEST]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _unpack(header: Mapping[str, Any], body: bytes) -> Artefact:
    """The artefact of a header and its raw arrays."""
    arrays, start = {}, 0
    for name, shape in header["arrays"]:
        count = int(np.prod(shape, dtype=object))
        if any(n < 0 for n in shape) or start + 4 * count > len(body):
            raise ValueError(f"array {name!r}: {shape} does not fit the file")
        arrays[name] = np.frombuffer(body, "<f4", count, start).reshape(shape).astype(np.float32)
        start += 4 * count
    if start != len(body):
        raise ValueError(f"arrays: {len(body) - start} bytes left over")
    network = header["network"]
    weights = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
    statistics = (arrays[f"normalisation.{name}"] for name in _NORMALISATION)
    return Artefact(
        layout=Layout.from_dict(header["layout"]),
        normalisation=Normalisation(*statistics, clip=header["normalisation"]["clip"]),
        network=Network(network["kind"], tuple(network["shape"]), network["activation"], weights),
        actions=header["actions"],
        portfolio=header["portfolio"],
        host=header["host"]["name"],
        fingerprint=header["host"]["fingerprint"],
        lam=header["dial"]["lam"],
        calibration=tuple((lam, cost) for lam, cost in header["dial"]["calibration"]),
        outside_limit=header["outside_limit"],
        provenance=header["provenance"],
        onnx_sha256=header["onnx_sha256"],
    )
