"""Weights of learned methods: one safetensors file for each method and host, named STAGE-NAME.safetensors.

Its metadata tell for which host it was made (fingerprint, widths) and how (`about`); both are checked on loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from foveate.compressors.learned import Learned
from foveate.compressors.registry import COMPRESSORS, make
from foveate.models.embedded import EMBEDDED
from foveate.models.errors import HostError

if TYPE_CHECKING:
    from foveate.models.host import Host

VERSION = "1"
SUFFIX = ".safetensors"
OWN = "foveate"
"""Folder inside a model's own folder where its weights of learned methods lie."""
FILE_DTYPE = torch.bfloat16
"""Of the numbers in a file, as models ship theirs: half the size of float32."""


class WrongWeights(HostError):
    """A weights file that is broken or was made for another host; the message names the file."""


def home(host: Host) -> Path:
    """The folder where a host's weights lie unless another is named: in the package for its own models, else in
    the model's own folder, else in the user's cache by fingerprint."""
    for name, weights in EMBEDDED.items():
        if host.name == name or Path(host.name) == weights:
            return weights.parent / "learned"
    if Path(host.name).is_dir():
        return Path(host.name) / OWN
    return Path.home() / ".cache" / OWN / host.fingerprint


def file_of(folder: str | Path, stage: str, name: str) -> Path:
    """Where a method's weights lie in a folder."""
    return Path(folder) / f"{stage}-{name}{SUFFIX}"


def attach(host: Host, folder: str | Path | None = None) -> Host:
    """Gives a host the networks of a folder; returns the host.

    Args:
        host: an opened model.
        folder: None = `home`; a file there that does not fit is passed over, and why is kept in `Host.unusable`.
    Raises:
        WrongWeights: no such folder, or a file in it that does not fit; only where a folder was named.
    """
    place = home(host) if folder is None else Path(folder)
    if folder is not None and not place.is_dir():
        raise WrongWeights(f"{place}: no such folder of weights of learned methods")
    for path in sorted(place.glob(f"*-*{SUFFIX}")):
        stage, _, name = path.stem.partition("-")
        try:
            host.learned[stage, name] = read(path, host)
        except WrongWeights as error:
            if folder is not None:
                raise
            host.unusable[stage, name] = f"{name}: {error}"
    return host


def rounded(network: nn.Module) -> nn.Module:
    """The network with every number as its file will hold it, so that what is judged is what ships; itself, changed."""
    with torch.no_grad():
        for value in network.state_dict().values():  # shares its memory with the network
            if value.is_floating_point():
                value.copy_(value.to(FILE_DTYPE))
    return network


def save(
    folder: str | Path,
    host: Host,
    stage: str,
    name: str,
    network: nn.Module,
    about: Mapping[str, Any],
    dtype: torch.dtype = FILE_DTYPE,
) -> Path:
    """Writes a network's file; a file that stands there is replaced at once, never half.

    Args:
        folder: made where it is not there.
        host: for which it was trained.
        stage: the method's.
        name: the method's.
        network: with weights.
        about: how it was made: recipe, steps, seed, figures; plain data.
        dtype: of the numbers in the file.
    """
    path = file_of(folder, stage, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().to(dtype).cpu().contiguous() for key, value in network.state_dict().items()}
    told = {"version": VERSION, "fingerprint": host.fingerprint}
    told |= {"widths": json.dumps(asdict(host.widths)), "about": json.dumps(dict(about))}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata=told)
    part.replace(path)
    return path


def read(path: str | Path, host: Host) -> nn.Module:
    """The network in a file, in the host's dtype and on its device, fixed.

    Raises:
        WrongWeights: the file is broken, names no learned method, or was made for another host.
    """
    path = Path(path)
    stage, _, name = path.stem.partition("-")
    if not issubclass(COMPRESSORS.get((stage, name), object), Learned):
        raise WrongWeights(f"{path}: there is no learned method {name!r} at stage {stage!r}")
    try:
        with safe_open(path, framework="pt") as file:
            told, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        theirs = (told.get("fingerprint"), _complete(json.loads(told.get("widths", "null")), host))
    except (OSError, ValueError, SafetensorError) as error:
        raise WrongWeights(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if told.get("version") != VERSION:
        raise WrongWeights(f"{path}: version {told.get('version')!r} of the file's form is unknown; known: {VERSION}")
    mine = (host.fingerprint, json.loads(json.dumps(asdict(host.widths))))
    for what, other, own in zip(("fingerprint", "widths"), theirs, mine, strict=True):
        if other != own:
            raise WrongWeights(f"{path}: is for another model ({what} {_short(other)}, here {_short(own)})")
    with torch.random.fork_rng(devices=[]):
        network = make(stage, name).build(host.widths)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if wanted != {key: tuple(value.shape) for key, value in tensors.items()}:
        raise WrongWeights(f"{path}: its tensors are not those of {name}; it was made by another version")
    network.load_state_dict(tensors)
    return network.to(host.device, host.dtype).eval().requires_grad_(False)


def about(path: str | Path) -> dict[str, Any]:
    """What a weights file says of how it was made."""
    with safe_open(Path(path), framework="pt") as file:
        return json.loads((file.metadata() or {}).get("about", "{}"))


def _complete(widths: Any, host: Host) -> Any:
    """A file's widths; files from before the size of heads was told hold nothing that hangs on it."""
    return {**widths, "head_dim": widths.get("head_dim", host.widths.head_dim)} if isinstance(widths, dict) else widths


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
