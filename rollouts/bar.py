"""A progress bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str, total: int, unit: str, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows how much of something is done; gives the function that advances it.

    Args:
        what: is being done.
        total: how much there is to do.
        unit: in which it is counted.
        shown: False: nothing is shown.
    """
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as running:
        task = running.add_task(what, total=total)
        yield lambda n: running.advance(task, n)
