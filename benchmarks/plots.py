"""How benchmarks draw: one look, and files that change only where what they show does.

Knows nothing of what is drawn. Needs matplotlib, which the extra `demo` installs.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Text stays text, and identifiers are the same whenever a picture is drawn again.
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "biggraph", "font.size": 10, "axes.grid": True,
    "grid.color": "#d0d0d0", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of some panels side by side."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, count, figsize=(5.5 * count, 3.8), layout="constrained")
    return figure, [axes] if count == 1 else list(axes)


def powers(axes: Axes, values: list[int], name: str) -> None:
    """Make the horizontal axis logarithmic, with a tick for each of these values alone."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(name)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG file, white behind, and forget the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
