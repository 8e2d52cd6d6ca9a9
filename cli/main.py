"""`foveate VERB ...`: reads arguments, calls the verb, and turns what went wrong into one line and an exit status.

Results go to files and stdout, progress and errors to stderr. Exit status: 0 done, 2 bad input, 1 anything else that
failed, 130 interrupted. Nothing heavy is imported before the verb is known.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from foveate.plans.plan import near

VERBS = {
    "run": "answer a question about a picture, compressed as the controller decides",
    "list": "the compressors that there are",
    "cost": "what a plan will cost on a model, without running it",
    "distill": "train the weights of a learned compressor for a model",
    "calibrate-heads": "measure which heads of a model look at what is read (for sparsemm)",
    "replay": "fill a table: every plan of a portfolio on every input",
    "train": "train a policy",
    "export": "write a trained policy as one controller file",
    "bench": "every compressor, ratio and task; then policies and rivals",
    "bench-compressors": "what every method's choosing costs, as a share of one ViT block",
    "demo": "the whole pipeline, small, on the embedded model",
}
"""Verb -> what it does; each is a module of this package with `arguments(parser)`, `main(args)` and `EXAMPLE`."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, and where the rest is told."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit status 2."""
        print(f"{self.prog}: {message} (see {self.prog} -h)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status. Arguments: those behind the program's name, None = the process's own."""
    # Waiting OpenMP threads spin unless told to sleep, and take shared cores from who works; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = argv[0] if argv else "-h"
    if verb in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if verb not in VERBS:
        print(f"foveate: unknown verb {verb!r}; near: {near(verb, VERBS)} (see foveate -h)", file=sys.stderr)
        return 2
    module = import_module(f"foveate.cli.{verb.replace('-', '_')}")
    parser = Parser(
        prog=f"foveate {verb}",
        description=f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}.",
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of a failure")
    try:
        args = parser.parse_args(argv[1:])
    except SystemExit as stop:  # -h, or an argument that does not fit
        return int(stop.code or 0)
    return _guarded(verb, module.main, args)


def _guarded(verb: str, run: object, args: argparse.Namespace) -> int:
    """Runs a verb's function; its exit status, whatever happens in it."""
    try:
        status = run(args)
        sys.stdout.flush()
        return int(status or 0)
    except KeyboardInterrupt:
        print(f"foveate {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `foveate list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.traceback:
            raise
        print(f"foveate {verb}: {line_of(error)}", file=sys.stderr)
        return 2 if is_bad_input(error) else 1


def is_bad_input(error: Exception) -> bool:
    """Whether an error is about what the caller gave: a value, or a path that is not there."""
    return isinstance(error, ValueError | FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError)


def line_of(error: Exception) -> str:
    """An error as one line: what and where."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) or not text:
        return f"{type(error).__name__} {text}".strip()
    return text if is_bad_input(error) else f"{type(error).__name__}: {text}"


def _overview() -> str:
    """What `foveate -h` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {about}" for verb, about in VERBS.items())
    head = "usage: foveate VERB ... (foveate VERB -h tells more)\n\nWhere, how and how hard to compress visual tokens."
    example = import_module("foveate.cli.run").EXAMPLE
    return f"{head}\n\n{verbs}\n\nexample:\n  {example}"


if __name__ == "__main__":
    sys.exit(main())
