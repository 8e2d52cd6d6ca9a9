"""Runs the command line in this process: exit status, stdout and stderr of one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from foveate.cli.main import main


@dataclass(frozen=True)
class Call:
    """What one call gave."""

    status: int
    out: str
    err: str

    def refused(self, verb: str, *words: str) -> bool:
        """One line on stderr from this verb, with these words, and the status of bad input."""
        one_line = self.err.count("\n") == 1 and self.err.startswith(f"foveate {verb}: ")
        return self.status == 2 and one_line and self.out == "" and all(word in self.err for word in words)


@pytest.fixture
def call(capsys) -> Callable[..., Call]:
    """call("list", "--json")."""

    def run(*argv: object) -> Call:
        capsys.readouterr()
        status = main([str(each) for each in argv])
        seen = capsys.readouterr()
        return Call(status, seen.out, seen.err)

    return run
