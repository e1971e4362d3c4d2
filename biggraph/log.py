"""What a run says: JSON lines for programs, progress and messages for people.

Knows the terminal and one file; nothing of graphs or training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Without a terminal, long work says how far it has come this often.
_SECONDS_BETWEEN_LINES = 30.0


class MetricsLog:
    """Appends one JSON object a line to a file; a line that a crash tore is cut off on opening.

    Args:
        path: of the file; made on the first line.
        publish: given all lines after each event but "bucket", where the file is only a draft.
    """

    def __init__(self, path: Path, publish: Callable[[bytes], None] | None = None) -> None:
        self._path, self._publish = path, publish
        self._start = time.monotonic()

    def repair(self) -> None:
        """Cut off a last line without its newline, so that every line parses."""
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self._path.open("r+b") as file:
                file.truncate(whole)

    def write(self, event: str, **values: Any) -> None:
        """Append an event; `time_s` counts from the start of this process's part of the run."""
        line = {"event": event, "time_s": round(time.monotonic() - self._start, 3), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._publish and event != "bucket":
            self._publish(self._path.read_bytes())


class Reporter:
    """Progress bars on a terminal, plain lines elsewhere, nothing when quiet; all on stderr.

    Args:
        quiet: say nothing but errors.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Reporter:
        if self._console.is_terminal and not self._quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _say_now_and_then(self, name: str, done: float, total: float | None, note: str) -> None:
        if time.monotonic() - self._said < _SECONDS_BETWEEN_LINES:
            return
        self._said = time.monotonic()
        share = f"{100 * done / total:.0f}%" if total else f"{done:,.0f}"
        self.say(f"{name}  {share}  {note}".rstrip())

    def say(self, message: str) -> None:
        """Print a line for people."""
        self._console.print(message, markup=False)

    def advance(self, name: str, done: float, total: float | None, note: str = "") -> None:
        """Show how far the work called `name` has come; bars show their remaining time.

        Args:
            name: what is done; one bar a name.
            done: units done so far.
            total: units in all, or None where unknown.
            note: shown behind the bar, such as a rate.
        """
        if self._progress is None:
            self._say_now_and_then(name, done, total, note)
            return
        if name not in self._tasks:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks = {name: self._progress.add_task(name, total=total, note=note)}
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)


def to_json(values: Mapping[str, Any]) -> str:
    """Return indented JSON, for `--json` files and standard output."""
    return json.dumps(values, indent=2, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use.

    >>> duration(8.4), duration(150), duration(7300)
    ('8 s', '2 min 30 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def align(rows: Sequence[Sequence[object]], *, header: Sequence[str] | None = None) -> str:
    """Return rows as text in aligned columns, numbers to the right, two spaces between.

    >>> print(align([("a", 1.5), ("bcd", 10.25)], header=["name", "x"]))
    name        x
    a      1.5000
    bcd   10.2500
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ([list(header)] if header else []) + cells
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
