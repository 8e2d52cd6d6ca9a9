"""`foveate list`: the compressors that there are, read off their classes, and which models can run them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveate.cli.text import columns

if TYPE_CHECKING:
    from foveate.models.host import Host

EXAMPLE = "foveate list --host families"
FLAGS = ("text_guided", "learned", "adaptive")
FAMILIES = "families"
"""As a model's name: one model of each family, and the reference model."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    form.add_argument(
        "--markdown", action="store_true", help="a page for people instead: docs/methods.md is made by it"
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="MODEL",
        help='which methods a model runs, and why not the others; once for each: "families", "reference", a folder, a '
        "config.json, the name of a shipped configuration, a hub id",
    )


def main(args: argparse.Namespace) -> int:
    """Prints the list."""
    hosts = hosts_of(args.host or ([FAMILIES] if args.markdown else []))
    entries = methods(hosts)
    if args.markdown:
        print(page(entries), end="")
    elif args.json:
        print(json.dumps(entries, indent=2))
    else:
        print(support(entries) if hosts else table(entries))
    return 0


def hosts_of(names: Sequence[str]) -> dict[str, Host]:
    """Name -> host, on paper: a configuration tells enough. Raises: UnsupportedModel."""
    found: dict[str, Host] = {}
    for name in names:
        from foveate.models.on_paper import family_hosts, paper_host  # torch and transformers: only where asked for

        if name == FAMILIES:
            found |= family_hosts()
        else:
            found[name] = paper_host(name)
    return found


def methods(hosts: Mapping[str, Host] | None = None) -> list[dict[str, Any]]:
    """One entry for each compressor, in order of stages, then names.

    Args:
        hosts: models; entries then say under "hosts", for each of them and each stage, None where it runs the method,
            else why not.
    """
    from foveate.compressors.base import STAGES
    from foveate.compressors.registry import COMPRESSORS

    entries = []
    for cls in sorted(set(COMPRESSORS.values()), key=lambda cls: (min(map(STAGES.index, cls.stages)), cls.name)):
        entry: dict[str, Any] = {"name": cls.name, "stages": list(cls.stages), "signals": sorted(cls.kinds)}
        entry |= {"modality": cls.modality, **{flag: getattr(cls, flag) for flag in FLAGS}}
        entry |= {"fidelity": cls.fidelity, "paper": cls.paper}
        if hosts:
            entry["hosts"] = {
                name: {stage: host.supports(stage, cls.name) for stage in cls.stages} for name, host in hosts.items()
            }
        entries.append(entry)
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as text."""
    head = ["name", "stages", "signals", "modality", "traits", "fidelity", "paper"]
    rows = []
    for entry in entries:
        row = [entry["name"], ", ".join(entry["stages"]), ", ".join(entry["signals"]) or "-", entry["modality"]]
        rows.append([*row, _traits(entry), entry["fidelity"], entry["paper"]])
    return columns(head, rows)


def support(entries: list[dict[str, Any]]) -> str:
    """Which model runs which method, as text; the reasons against stand below, by number."""
    head, rows, reasons = _support(entries)
    return "\n".join([columns(head, rows), "", *(f"({i}) {reason}" for i, reason in enumerate(reasons, 1))]).rstrip()


def page(entries: list[dict[str, Any]]) -> str:
    """The entries as a Markdown page, one sentence of idea each: the first line of the method's own docstring."""
    from foveate.compressors.registry import COMPRESSORS

    lines = ["# Methods", "", "Made by `foveate list --markdown`; a test holds it to the code.", ""]
    lines += ["| method | stages | idea | reads | traits | fidelity | paper |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        idea = (COMPRESSORS[entry["stages"][0], entry["name"]].__doc__ or "").strip().split("\n\n")[0]
        cells = [entry["name"], ", ".join(entry["stages"]), " ".join(idea.split()), ", ".join(entry["signals"]) or "-"]
        lines.append("| " + " | ".join([*cells, _traits(entry), entry["fidelity"], entry["paper"]]) + " |")
    if entries and "hosts" in entries[0]:
        lines += ["", *_support_page(entries)]
    return "\n".join(lines) + "\n"


def _traits(entry: Mapping[str, Any]) -> str:
    return ", ".join(flag.replace("_", " ") for flag in FLAGS if entry[flag]) or "-"


def _support(entries: list[dict[str, Any]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Head and rows, one for each method and stage: "yes", or the number of a reason against; and the reasons."""
    reasons: list[str] = []
    rows = []
    for entry in entries:
        for stage in entry["stages"]:
            row = [entry["name"], stage]
            for found in entry["hosts"].values():
                reason = found[stage]
                if reason is not None and (reason := reason.removeprefix(f"{entry['name']}: ")) not in reasons:
                    reasons.append(reason)
                row.append("yes" if reason is None else f"({reasons.index(reason) + 1})")
            rows.append(row)
    return ["method", "stage", *entries[0]["hosts"]], rows, reasons


def _support_page(entries: list[dict[str, Any]]) -> list[str]:
    head, rows, reasons = _support(entries)
    lines = ["## Which families run them", ""]
    lines += [
        "The reference model is a LLaVA with a text tower beside it; columns are model types of transformers.",
        "",
    ]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, "", *(f"* ({i}) {reason}" for i, reason in enumerate(reasons, 1))]
