"""The arrows between the folders, read off the source text: who may import whom, and what nobody may do."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.fast

# A folder imports only from folders on a lower floor, never from its neighbours on the same one.
FLOORS = (
    {"compressors", "plans", "tasks", "configs"},
    {"controller"},
    {"models"},
    {"envs", "serving"},
    {"rollouts"},
    {"policies"},
    {"analysis"},
    {"cli"},
)
FLOOR = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
TRAINING = {"gymnasium", "stable_baselines3", "ray", "tensorboard"}
# Folders that import these libraries and Python's own, no other; what is LAZY may also be imported inside a function.
ONLY = {"compressors": {"torch"}, "plans": {"numpy"}, "tasks": {"numpy", "PIL", "av", "sklearn", "skimage"}}
ONLY |= {"controller": {"numpy"}, "configs": set()}
LAZY = {"plans": {"yaml"}, "controller": {"onnx", "onnxruntime"}}
# Folders whose import must not cost a serving process the training stack.
NEVER = {"models": TRAINING, "serving": TRAINING}
OURS = {"controller": {"plans"}}  # narrower than the floors
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"joblib.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"}
LONGEST, LONGEST_METHOD = 400, 250
# In two parts, or this file would break its own rule.
PRIVATE = ["../" + "shared", "DESIGN" + ".md", "STYLE" + ".md", "PLATFORM" + ".md", "/work" + "/", "/tmp/" + "nsroot"]


def imports(code: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted module, whether it runs on import of the file) of every import; relative ones start with a dot."""
    inner = {
        id(n) for f in ast.walk(code) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(code):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from foveate import models` and `from torch.utils import tensorboard` name modules after the keyword
            names = [module] if module.startswith(".") else [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        yield from ((node.lineno, name, id(node) not in inner) for name in names)


def public(names: list[str]) -> bool:
    """Whether the names after `transformers` are nothing, one class, or one of its few public functions."""
    return not names or (len(names) == 1 and (names[0][0].isupper() or names[0] in {"pipeline", "set_seed"}))


def wrong_imports(path: str, code: ast.Module) -> Iterator[str]:
    """One line for each import in `path` that its folder may not have."""
    folder = path.split("/")[0]
    for line, module, at_import in imports(code):
        top, *rest = module.split(".")
        where = f"{path}:{line}: imports {module}"
        if not top:
            yield f"{path}:{line}: relative import; write from foveate.{folder}... import"
        elif top in FLOOR:
            yield f"{where}; write foveate.{module}"
        elif top == "foveate":
            other = rest[0] if rest else ""
            if other not in FLOOR:
                yield f"{where}; {other!r} is no folder of foveate"
            elif other != folder and FLOOR[other] >= FLOOR[folder]:
                yield f"{where}; {folder} imports only from floors below its own"
            elif other != folder and folder in OURS and other not in OURS[folder]:
                yield f"{where}; {folder} imports nothing of ours but {', '.join(sorted(OURS[folder]))}"
        elif top not in sys.stdlib_module_names:
            allowed = ONLY.get(folder, {top}) | (set() if at_import else LAZY.get(folder, set()))
            server = folder == "serving" and PurePosixPath(path).name.startswith("server")
            banned = NEVER.get(folder, set()) - ({"ray"} if server else set())
            if top not in allowed:
                yield f"{where}; {folder} may import {', '.join(sorted(ONLY[folder])) or 'no library'}"
            elif top in banned or (module.startswith("torch.utils.tensorboard") and "tensorboard" in banned):
                yield f"{where}; {folder} must load without the training libraries"
            elif top == "transformers" and folder != "models" and not public(rest):
                yield f"{where}; only models/ reaches inside transformers, others use its public classes"


def unsafe_loads(path: str, code: ast.Module) -> Iterator[str]:
    """One line for each way in `path` to run code out of a file that a user loads."""
    alias = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            alias |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            alias |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for line, module, _ in imports(code):
        if module.split(".")[0] in UNSAFE_MODULES:
            yield f"{path}:{line}: imports {module}; loading such a file runs whatever is in it"
    for node in (n for n in ast.walk(code) if isinstance(n, ast.Call)):
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = alias.get(first, first) + dot + rest
        options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if name in UNSAFE_CALLS:
            yield f"{path}:{node.lineno}: calls {name}; it can run code from the file"
        elif name == "torch.load" and options.get("weights_only") is not True:
            yield f"{path}:{node.lineno}: calls torch.load without weights_only=True"
        elif name == "numpy.load" and options.get("allow_pickle", False) is not False:
            yield f"{path}:{node.lineno}: calls numpy.load with allow_pickle"


def parsed(root: Path, tree: list[str]) -> list[tuple[str, ast.Module]]:
    """(path, syntax tree) of every Python file that ships."""
    ours = [path for path in tree if path.endswith(".py") and path.split("/")[0] in FLOOR]
    return [(path, ast.parse((root / path).read_text("utf-8"), path)) for path in ours]


def listed_packages(root: Path) -> set[str]:
    """Names of the packages that pyproject.toml lists."""
    return set(tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("compressors/prefill/new.py", "from foveate.plans.plan import keep_count"),
        ("compressors/prefill/new.py", "import numpy as np"),
        ("compressors/prefill/new.py", "from .base import Tokens"),
        ("compressors/prefill/new.py", "from compressors.base import Tokens"),
        ("plans/plan.py", "import yaml"),
        ("plans/plan.py", "from foveate import models"),
        ("tasks/scenes.py", "def f():\n    import matplotlib.pyplot"),
        ("controller/decision.py", "from foveate.tasks.base import Sample"),
        ("controller/decision.py", "from importlib import import_module\nimport_module('torch')"),
        ("models/host.py", "from foveate.envs.compression import CompressionEnv"),
        ("models/host.py", "from torch.utils import tensorboard"),
        ("serving/gate.py", "def f():\n    import ray"),
        ("serving/gate.py", "from foveate.envs import masks"),
        ("envs/compression.py", "from transformers.models.llava import modeling_llava"),
        ("envs/compression.py", "from transformers import modeling_utils"),
        ("rollouts/workers.py", "from foveate.nowhere import thing"),
    ],
)
def test_an_arrow_that_points_the_wrong_way_is_found(path, line):
    found = list(wrong_imports(path, ast.parse(line)))
    assert len(found) == 1 and found[0].startswith(f"{path}:{line.count(chr(10)) + 1}: "), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("compressors/prefill/new.py", "import torch, math\nfrom foveate.compressors.base import Tokens"),
        ("plans/portfolio.py", "import numpy\ndef f():\n    import yaml"),
        ("tasks/pictures.py", "from importlib.util import find_spec\nfind_spec('easy_vqa')\nfrom skimage import data"),
        ("controller/decision.py", "from foveate.plans.plan import Plan"),
        ("models/families/llava.py", "from transformers.models.llava import modeling_llava"),
        ("serving/server.py", "from ray import serve"),
        ("serving/gate.py", "from transformers import AutoProcessor, PreTrainedModel"),
        ("analysis/bench.py", "import transformers\nfrom transformers import set_seed"),
        ("cli/main.py", "from foveate.analysis import report"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(path, line):
    assert list(wrong_imports(path, ast.parse(line))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load\nload(path)",
        "import torch\ntorch.load(path)",
        "from torch import load as fetch\nfetch(path, weights_only=False)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_a_load_that_can_run_code_is_found(line):
    found = list(unsafe_loads("controller/artefact.py", ast.parse(line)))
    assert len(found) == 1 and found[0].startswith(f"controller/artefact.py:{line.count(chr(10)) + 1}: "), found


def test_a_load_of_plain_data_is_allowed():
    source = "import torch, yaml\nimport numpy as np\ntorch.load(p, weights_only=True)\nnp.load(p)\nyaml.safe_load(p)"
    assert list(unsafe_loads("models/host.py", ast.parse(source))) == []


def test_every_folder_imports_only_what_its_floor_allows(root, tree):
    assert [line for path, code in parsed(root, tree) for line in wrong_imports(path, code)] == []


def test_nothing_that_ships_loads_a_file_that_could_run_code(root, tree):
    assert [line for path, code in parsed(root, tree) for line in unsafe_loads(path, code)] == []


def test_files_stay_short_enough_to_read(root, tree):
    long = []
    for path in (p for p in tree if p.endswith(".py")):
        limit = LONGEST_METHOD if path.startswith("compressors/") and path.count("/") > 1 else LONGEST
        lines = len((root / path).read_text("utf-8").splitlines())
        long += [f"{path}: {lines} lines, limit {limit}"] if lines > limit else []
    assert long == []


def test_no_file_points_outside_the_project(root, tree):
    found = []
    for path in tree:
        try:
            lines = (root / path).read_text("utf-8").splitlines()
        except UnicodeDecodeError:  # pictures, fonts, weights
            continue
        found += [f"{path}:{n}: {name}" for n, line in enumerate(lines, 1) for name in PRIVATE if name in line]
    assert found == []


def test_every_folder_with_code_is_a_package_and_is_listed_in_pyproject(root, tree):
    folders = {
        str(PurePosixPath(path).parent) for path in tree if path.endswith(".py") and path.split("/")[0] != "tests"
    }
    assert sorted(folder for folder in folders if f"{folder}/__init__.py" not in tree) == []
    expected = {"foveate." + folder.replace("/", ".") for folder in folders}
    assert listed_packages(root) == expected, "list every package under [tool.setuptools] packages in pyproject.toml"
    mapping = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"foveate.{top}": top for top in {folder.split("/")[0] for folder in folders}}


def test_every_library_that_is_imported_is_declared_with_a_tested_version(root, tree):
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [text for name, extra in project["optional-dependencies"].items() if name != "dev" for text in extra]
    declared = {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"] + extras)}
    top = {module.split(".")[0] for _, code in parsed(root, tree) for _, module, _ in imports(code)}
    owners = packages_distributions()
    libraries = top - set(sys.stdlib_module_names) - {"foveate", ""}
    # what is not installed here (lmms-eval is not, it has an environment of its own) goes by the name it is imported by
    assert sorted(n for n in libraries if not {canonicalize_name(o) for o in owners.get(n, [n])} & set(declared)) == []
    lines = [line for line in (root / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert sorted(name for name, r in declared.items() if not r.specifier.contains(pins.get(name, "0.dev0"))) == []


def test_the_folders_do_not_resolve_without_the_package_name():
    bare = sorted(folder for folder in FLOOR if importlib.util.find_spec(folder) is not None)
    assert bare == [], "the checkout is on sys.path; set PYTHONSAFEPATH=1, as make test does"


@pytest.mark.parametrize(
    ("package", "banned", "alone"),
    [
        ("foveate.plans", set(), {"numpy"}),
        ("foveate.controller", set(), {"numpy"}),
        ("foveate.compressors", TRAINING | {"transformers", "matplotlib"}, None),
        ("foveate.tasks", TRAINING | {"torch", "transformers", "matplotlib"}, None),
        ("foveate.models", TRAINING | {"matplotlib"}, None),
        ("foveate.serving", TRAINING | {"matplotlib"}, None),
    ],
)
def test_importing_a_package_loads_no_more_than_it_promises(root, tree, package, banned, alone):
    """Every module of it but servers and scripts, in a fresh process: what the source hides, sys.modules shows."""
    if package not in listed_packages(root):
        pytest.skip(f"{package} is not part of this version")
    folder = package.removeprefix("foveate.")
    files = [p for p in tree if p.startswith(f"{folder}/") and p.endswith(".py") and "server" not in p]
    modules = ["foveate." + p.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for p in files]
    modules = [name for name in modules if not name.endswith(".__main__")]
    code = (
        "import importlib, sys; before = set(sys.modules)\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name != "foveate" and not name.startswith("__editable__")}
    assert loaded & banned == set()
    assert alone is None or loaded <= alone
