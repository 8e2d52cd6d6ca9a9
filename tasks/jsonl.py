"""The user's own data: one JSON object a line, pictures and videos beside it in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foveate.tasks.base import Sample, TaskDataError, Turn
from foveate.tasks.clip import FRAMES, Clip
from foveate.tasks.images import open_picture
from foveate.tasks.splits import digest

KEYS = {
    "image",
    "images",
    "video",
    "frames",
    "question",
    "answers",
    "turns",
    "regime",
    "split",
    "family",
    "id",
    "caption",
}


def read_jsonl(
    path: str | Path,
    root: str | Path | None = None,
    on_error: str = "skip",
    report: Callable[[str], None] | None = None,
) -> Iterator[Sample]:
    """Samples of a JSONL file, one after the other: the file is never held in memory.

    A row is {"image": "a.png", "question": "...", "answers": ["..."]} or {"image": ..., "turns": [{"question": ...,
    "answers": [...]}, ...]}, with "regime", "split", "family", "id" and "caption" if wanted. Questions about several
    pictures have "images": ["a.png", "b.png"] instead, in the order of the prompt; those about a video have "video":
    "a.mp4", and "frames": n where not `tasks.clip.FRAMES` of it, at even distances, are to be shown. `answers` may be
    null: the row is then label-free. Blank lines are passed over. Pictures keep their size; they are turned as their
    EXIF data says and made RGB.

    Args:
        path: the JSONL file, UTF-8.
        root: folder that the paths of pictures and videos start from; default: the folder of the file.
        on_error: "skip" reports a bad row and goes on, "raise" stops at it.
        report: takes one line for every skipped row; default: standard error.

    Raises:
        ValueError: `on_error` is neither "skip" nor "raise".
        TaskDataError: the file cannot be read; with "raise" also the first bad row.
    """
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error is {on_error!r}, choose 'skip' or 'raise'")
    path = Path(path)
    if not path.is_file():
        raise TaskDataError(f"{path}: file not found")
    return _rows(path, Path(root) if root is not None else path.parent, on_error, report or _to_stderr)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _rows(path: Path, root: Path, on_error: str, report: Callable[[str], None]) -> Iterator[Sample]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                sample = sample_of(line, number, path, root)
            except TaskDataError as error:
                message = f"{path.name}:{number}: {error}"
                if on_error == "raise":
                    raise TaskDataError(message) from error
                report(message)
                continue
            yield sample


def sample_of(line: bytes, number: int, path: Path, root: Path) -> Sample:
    """The sample of one line of a file. Raises: TaskDataError on a bad row, without file and line.

    Args:
        line: as it stands in the file.
        number: of the line, from 1.
        path: the file.
        root: folder that the paths of pictures and videos start from.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TaskDataError(f"not UTF-8 (byte {error.start})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise TaskDataError(f"not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise TaskDataError(f"expected a JSON object, found {type(row).__name__}")
    unknown = sorted(set(row) - KEYS)
    if unknown:
        raise TaskDataError(f"unknown key {unknown[0]!r}, known are {', '.join(sorted(KEYS))}")
    turns, names = _turns(row), _names(row)
    clip = _clip(row, root)
    image, *more = (open_picture(name, root) for name in names) if clip is None else (clip.middle,)
    return Sample(
        id=_text(row, "id", f"{path.stem}/{number}"),
        task=path.stem,
        regime=_text(row, "regime", path.stem),
        split=_text(row, "split", "user"),
        family=_text(row, "family", digest([path.stem, *names])),
        index=number - 1,
        image=image,
        turns=turns,
        caption=_text(row, "caption", ""),
        more=tuple(more),
        clip=clip,
    )


def _clip(row: dict[str, Any], root: Path) -> Clip | None:
    """The frames of a row's video, where it has one."""
    if "video" not in row:
        if "frames" in row:
            raise TaskDataError("frames are given, and no video")
        return None
    n = row.get("frames", FRAMES)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise TaskDataError(f"frames is {n!r}, expected a whole number above 0")
    from foveate.tasks.video import frames  # the decoder is slow to import

    return frames(row["video"], n, root=root)


def _names(row: dict[str, Any]) -> list[str]:
    """The picture files of a row, or its video."""
    if "video" in row:
        if "image" in row or "images" in row:
            raise TaskDataError("give either a video or pictures, not both")
        return [_text(row, "video", None)]
    if "images" not in row:
        return [_text(row, "image", None)]
    if "image" in row:
        raise TaskDataError("give either image or images, not both")
    names = row["images"]
    if not isinstance(names, list) or not names:
        raise TaskDataError("images is empty or no list")
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise TaskDataError(f"images[{position}] is {name!r}, expected text")
    return names


def _text(row: dict[str, Any], key: str, default: str | None) -> str:
    value = row.get(key, default)
    if value is None:
        raise TaskDataError(f"{key} is missing")
    if not isinstance(value, str) or (not value.strip() and value != default):
        raise TaskDataError(f"{key} is {value!r}, expected text")
    return value


def _turns(row: dict[str, Any]) -> tuple[Turn, ...]:
    if "turns" not in row:
        return (_turn(row, "question"),)
    if "question" in row or "answers" in row:
        raise TaskDataError("give either turns or question and answers, not both")
    rows = row["turns"]
    if not isinstance(rows, list) or not rows:
        raise TaskDataError("turns is empty or no list")
    for position, turn in enumerate(rows):
        if not isinstance(turn, dict):
            raise TaskDataError(f"turns[{position}] is no JSON object")
        extra = sorted(set(turn) - {"question", "answers"})
        if extra:
            raise TaskDataError(f"turns[{position}] has the unknown key {extra[0]!r}, known are answers, question")
    return tuple(_turn(turn, f"turns[{position}].question") for position, turn in enumerate(rows))


def _turn(row: dict[str, Any], where: str) -> Turn:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise TaskDataError(f"{where} is empty or missing")
    place = where.replace("question", "answers")
    if "answers" not in row:
        raise TaskDataError(f"{place} is missing (null marks a label-free row)")
    answers = row["answers"]
    if answers is None:
        return Turn(question, (), "user")
    if not isinstance(answers, list) or not answers:
        raise TaskDataError(f"{place} is empty or no list (null marks a label-free row)")
    bad = [answer for answer in answers if not isinstance(answer, str) or not answer.strip()]
    if bad:
        raise TaskDataError(f"{place} holds {bad[0]!r}, expected text")
    return Turn(question, tuple(answers), "user")
