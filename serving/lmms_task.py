"""Pictures and questions of ours as a task of lmms-eval: a folder with a YAML file and a Parquet file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from foveate.tasks.base import Sample, exact_match

DATA = "test.parquet"
FEATURES = {
    "image": {"_type": "Image"},
    "question": {"dtype": "string", "_type": "Value"},
    "answers": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "id": {"dtype": "string", "_type": "Value"},
    "regime": {"dtype": "string", "_type": "Value"},
    "family": {"dtype": "string", "_type": "Value"},
}
"""Columns, as the library `datasets` describes them: without it, pictures would be read back as plain bytes."""


def write_task(folder: str | Path, name: str, samples: Sequence[Sample], max_new_tokens: int = 8) -> Path:
    """Writes FOLDER/NAME.yaml and the data beside it; `lmms-eval --include_path FOLDER --tasks NAME` finds them.

    One document for each turn that has answers, graded as everything here is: `tasks.base.exact_match`.

    Args:
        folder: made where it is not there. One task a folder.
        name: of the task.
        samples: whose turns become documents, in order.
        max_new_tokens: longest answer.
    Returns:
        The YAML file.
    Raises:
        ValueError: no turn with answers.
    """
    folder = Path(folder).absolute()
    rows = [row for sample in samples for row in _rows(sample)]
    if not rows:
        raise ValueError(f"task {name!r}: none of {len(samples)} samples has a question with answers")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=_schema())
    pq.write_table(table, folder / DATA)
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / DATA)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "image",
        "doc_to_text": "question",
        "doc_to_target": "answers",
        "process_results": f"{__name__}.graded",
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "do_sample": False, "until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(task, sort_keys=False)
    path = folder / f"{name}.yaml"
    # A function is a tag of the harness's own, which YAML's writer would quote.
    path.write_text(text.replace("process_results: ", "process_results: !function "), encoding="utf-8")
    return path


def graded(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's `process_results`: 1 where the answer is one of those accepted."""
    return {"exact_match": float(exact_match(results[0], doc["answers"]))}


def _rows(sample: Sample) -> list[dict[str, Any]]:
    """One row for each turn with answers."""
    file = io.BytesIO()
    Image.fromarray(sample.image).save(file, format="PNG")
    about = {"regime": sample.regime, "family": sample.family}
    return [
        {
            "image": {"bytes": file.getvalue(), "path": None},
            "question": turn.question,
            "answers": list(turn.answers),
            "id": f"{sample.id}#{number}",
            **about,
        }
        for number, turn in enumerate(sample.turns)
        if turn.answers
    ]


def _schema() -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", image), ("question", pa.string()), ("answers", pa.list_(pa.string()))]
    fields += [(name, pa.string()) for name in ("id", "regime", "family")]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})
