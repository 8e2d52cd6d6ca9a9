"""Run by test_lmms.py with the Python that has lmms-eval: several evaluations in one process, their results as JSON.

python lmms_runs.py TASKS_FOLDER OUT.json < runs.json, where runs.json maps a name to arguments of `simple_evaluate`. A
run that raises is recorded by its error.
"""

import json
import sys

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


def run(folder: str, arguments: dict) -> dict:
    """One evaluation: its metrics, its samples' logs and its means."""
    tasks = TaskManager(include_path=folder, include_defaults=False, model_name="foveate")
    try:
        found = simple_evaluate(model="foveate", task_manager=tasks, bootstrap_iters=0, **arguments)
    except (ValueError, NotImplementedError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {name: found[name] for name in ("results", "samples", "throughput", "config") if name in found}


if __name__ == "__main__":
    folder, out = sys.argv[1:]
    found = {name: run(folder, arguments) for name, arguments in json.load(sys.stdin).items()}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file, default=str)
