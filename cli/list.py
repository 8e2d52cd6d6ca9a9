"""`foveate list`: the compressors that there are, read off their classes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from foveate.cli.reading import open_model
from foveate.cli.text import columns

if TYPE_CHECKING:
    from foveate.models.host import Host

EXAMPLE = "foveate list --json"
FLAGS = ("text_guided", "learned", "adaptive")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    form.add_argument(
        "--markdown", action="store_true", help="a page for people instead: docs/methods.md is made by it"
    )
    parser.add_argument(
        "--host", metavar="MODEL", help='also say what this model supports: "reference", folder, hub id'
    )


def main(args: argparse.Namespace) -> int:
    """Prints the list."""
    host = None
    if args.host is not None:
        host = open_model(args.host)
    entries = methods(host)
    if args.markdown:
        print(page(entries), end="")
    else:
        print(json.dumps(entries, indent=2) if args.json else table(entries))
    return 0


def methods(host: Host | None = None) -> list[dict[str, Any]]:
    """One entry for each compressor, in order of stages, then names.

    Args:
        host: a model; entries then say under "host" for each stage None where it supports the method, else why not.
    """
    from foveate.compressors.base import STAGES
    from foveate.compressors.registry import COMPRESSORS

    entries = []
    for cls in sorted(set(COMPRESSORS.values()), key=lambda cls: (min(map(STAGES.index, cls.stages)), cls.name)):
        entry: dict[str, Any] = {"name": cls.name, "stages": list(cls.stages), "signals": sorted(cls.kinds)}
        entry |= {"modality": cls.modality, **{flag: getattr(cls, flag) for flag in FLAGS}}
        entry |= {"fidelity": cls.fidelity, "paper": cls.paper}
        if host is not None:
            entry["host"] = {stage: host.supports(stage, cls.name) for stage in cls.stages}
        entries.append(entry)
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as text."""
    head = ["name", "stages", "signals", "modality", "traits", "fidelity", "paper"]
    rows = []
    for entry in entries:
        traits = ", ".join(flag.replace("_", " ") for flag in FLAGS if entry[flag]) or "-"
        row = [entry["name"], ", ".join(entry["stages"]), ", ".join(entry["signals"]) or "-", entry["modality"], traits]
        row += [entry["fidelity"], entry["paper"]]
        if "host" in entry:
            reasons = sorted({reason for reason in entry["host"].values() if reason is not None})
            row.insert(2, "; ".join(reasons) or "yes")
        rows.append(row)
    if entries and "host" in entries[0]:
        head.insert(2, "supported")
    return columns(head, rows)


def page(entries: list[dict[str, Any]]) -> str:
    """The entries as a Markdown page, one sentence of idea each: the first line of the method's own docstring."""
    from foveate.compressors.registry import COMPRESSORS

    lines = ["# Methods", "", "Made by `foveate list --markdown`; a test holds it to the code.", ""]
    lines += ["| method | stages | idea | reads | traits | fidelity | paper |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        idea = (COMPRESSORS[entry["stages"][0], entry["name"]].__doc__ or "").strip().split("\n\n")[0]
        traits = ", ".join(flag.replace("_", " ") for flag in FLAGS if entry[flag]) or "-"
        cells = [entry["name"], ", ".join(entry["stages"]), " ".join(idea.split()), ", ".join(entry["signals"]) or "-"]
        lines.append("| " + " | ".join([*cells, traits, entry["fidelity"], entry["paper"]]) + " |")
    return "\n".join(lines) + "\n"
