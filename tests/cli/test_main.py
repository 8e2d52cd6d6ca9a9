"""The command line itself: help, unknown verbs, exit statuses, quick start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from foveate.cli.main import VERBS, is_bad_input, line_of, main

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_in_a_line_to_paste(call, verb):
    got = call(verb, "-h")
    assert got.status == 0
    assert got.out.rstrip().splitlines()[-1].strip().startswith(f"foveate {verb}")


def test_the_overview_names_every_verb_and_ends_in_a_line_to_paste(call):
    got = call("-h")
    assert got.status == 0 and all(f"\n  {verb} " in got.out for verb in VERBS)
    assert got.out.rstrip().splitlines()[-1].strip().startswith("foveate run --image")
    assert call().status == 2


def test_an_unknown_verb_lists_near_ones(call):
    got = call("lst")
    assert (got.status, got.err.count("\n")) == (2, 1)
    assert got.err.startswith("foveate: unknown verb 'lst'; near: list")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["cost", "--text", "many"], "--text"),
        (["cost", "--nothing"], "--nothing"),
        (["run"], "--question"),
        (["run", "--image", "a.png", "--question", "q", "--budget", "0.3", "--lam", "1"], "--lam"),
        (["replay", "--split", "tset", "--out", "t"], "tset"),
        (["run", "--question", "q?"], "--image"),
        (["run", "--image", "gone.png", "--question", "q?"], "gone.png"),
        (["train", "gone"], "nor one of that name in configs; near: demo, train_tiny"),
    ],
)
def test_a_wrong_argument_is_one_line(call, argv, word):
    assert call(*argv).refused(argv[0], word)


@pytest.mark.parametrize(
    ("error", "bad", "line"),
    [
        (ValueError("two\n lines"), True, "two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), True, "No such file or directory: x.png"),
        (OSError(28, "No space left on device", "x"), False, "No space left on device: x"),
        (RuntimeError("broken"), False, "RuntimeError: broken"),
        (KeyError("name"), False, "KeyError 'name'"),
        (ValueError(), True, "ValueError"),
    ],
)
def test_an_error_becomes_one_line_and_a_status(error, bad, line):
    assert (is_bad_input(error), line_of(error)) == (bad, line)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bad"), 2), (RuntimeError("bad"), 1), (KeyboardInterrupt(), 130)]
)
def test_what_a_verb_raises_becomes_its_exit_status(monkeypatch, capsys, error, status):
    def fails(args):
        raise error

    monkeypatch.setattr("foveate.cli.list.main", fails)
    assert main(["list"]) == status
    seen = capsys.readouterr().err
    assert seen.startswith("foveate list: ") and seen.count("\n") == 1


def test_a_traceback_is_there_for_whoever_asks(monkeypatch):
    def fails(args):
        raise ValueError("bad")

    monkeypatch.setattr("foveate.cli.list.main", fails)
    with pytest.raises(ValueError, match="bad"):
        main(["list", "--traceback"])


def test_importing_the_command_line_loads_no_library():
    code = (
        "import sys; from importlib import import_module; import foveate.cli.main as m\n"
        "heavy = {'torch', 'transformers', 'ray', 'stable_baselines3', 'gymnasium', 'rich', 'matplotlib', 'sklearn'}\n"
        "for verb in m.VERBS: import_module('foveate.cli.' + verb.replace('-', '_'))\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_are_told_to_sleep_before_torch_is_loaded_unless_the_user_said_otherwise(given, expected):
    code = (
        "import os, sys; import foveate.cli.main as m\n"
        "load = m.import_module\n"
        "def told(name):\n"
        "    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules, file=sys.stderr)\n"
        "    return load(name)\n"
        "m.import_module = told\n"
        "m.main(['list', '--json'])"
    )
    rest = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env = rest if given is None else {**rest, "OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stderr.splitlines()[0] == f"{expected} False", done.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m foveate.cli.main list --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[\n", "")
