"""A picture of the demo's modules: t-SNE of their embeddings, coloured by topic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from sklearn.manifold import TSNE

import biggraph

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TOPICS = {
    "graphics": "curses tkinter turtle",
    "network": "ftplib http imaplib nntplib poplib select selectors smtplib socket socketserver "
    "ssl telnetlib urllib wsgiref xmlrpc",
    "mail and markup": "base64 binascii email html mailbox mimetypes quopri xml",
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched signal subprocess "
    "threading",
    "Python itself": "ast bdb code compileall ctypes dis distutils importlib inspect keyword "
    "pdb pkgutil py_compile pydoc runpy symtable sys sysconfig tabnanny token tokenize "
    "trace traceback types venv weakref zipapp zipimport",
    "files and system": "bz2 fileinput filecmp fnmatch getpass glob gzip io lzma mmap ntpath os "
    "pathlib platform posixpath pwd shutil stat tarfile tempfile zipfile zlib",
    "numbers and time": "array bisect calendar cmath colorsys datetime decimal fractions heapq "
    "math numbers operator random secrets statistics struct time zoneinfo",
    "data and text": "collections configparser copy copyreg csv dataclasses dbm difflib enum "
    "functools itertools json marshal pickle plistlib pprint re reprlib shelve sqlite3 string "
    "textwrap tomllib typing unicodedata codecs",
    "command line and tests": "argparse cmd doctest getopt logging optparse shlex unittest "
    "warnings",
}
WELL_KNOWN = """
argparse asyncio ast base64 calendar codecs collections concurrent.futures configparser csv ctypes
curses datetime decimal difflib dis distutils email enum fractions ftplib functools gzip hashlib
heapq html.parser http.client http.server imaplib importlib inspect io itertools json logging math
mimetypes multiprocessing numbers os pathlib pdb pickle posixpath pprint queue random re sched
select shutil signal smtplib socket socketserver sqlite3 ssl statistics string subprocess tarfile
tempfile textwrap threading time tkinter tokenize traceback turtle types typing unittest
unittest.mock urllib.parse urllib.request uuid venv weakref xml.dom.minidom xml.etree.ElementTree
xml.sax zipfile zoneinfo
"""
PALE = "#d0d0d0"


def draw_module_map(embeddings: biggraph.Embeddings, path: Path) -> None:
    """Write the picture: near modules have similar embeddings; the many codecs are left out."""
    graph = embeddings.graph
    keys = [key for key in graph.schema.partition_keys() if key.entity_type == "module"]
    every = [name for key in keys for name in graph.names(key).to_pylist()]
    names = [name for name in every if not name.startswith("encodings.")]
    rows_ND = embeddings.vectors(names, "module")
    layout = TSNE(metric="cosine", init="pca", perplexity=15, random_state=0)
    plot(names, layout.fit_transform(rows_ND), path)


def plot(names: Sequence[str], places_N2: np.ndarray, path: Path) -> None:
    """Draw every module as a dot and the well-known ones with their names."""
    figure, axes = plt.subplots(figsize=(15, 11), layout="constrained")
    topics = np.array([topic_of(name) for name in names])
    colours = plt.get_cmap("tab10").colors
    axes.scatter(*places_N2[topics == ""].T, s=14, color=PALE, label="other")
    for topic, colour in zip(TOPICS, colours, strict=False):
        axes.scatter(*places_N2[topics == topic].T, s=26, color=colour, label=topic)
    low_2, high_2 = np.quantile(places_N2, (0.01, 0.99), axis=0)  # a stray dot may fall outside
    margin_2 = 0.08 * (high_2 - low_2)
    bounds_22 = np.stack([low_2 - margin_2, high_2 + margin_2], axis=1)
    axes.set(xlim=bounds_22[0], ylim=bounds_22[1])
    axes.set_axis_off()
    axes.set_title("Modules of the Python standard library, placed by their embeddings", size=18)
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, -0.06), ncols=5, frameon=False, fontsize=11
    )
    figure.canvas.draw()  # so that text has a size
    place_of = dict(zip(names, places_N2, strict=True))
    label([(name, place_of[name]) for name in WELL_KNOWN.split() if name in place_of], axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def topic_of(name: str) -> str:
    """Return the topic of a module, by its top package, or an empty string."""
    top = name.partition(".")[0].lstrip("_")
    return next((topic for topic, tops in TOPICS.items() if top in tops.split()), "")


def label(points: Sequence[tuple[str, np.ndarray]], axes: Axes) -> None:
    """Write names beside their points, at the first of four sides where no other name stands."""
    sides = ((6, 0, "left", "center"), (-6, 0, "right", "center"))
    sides += ((0, 6, "center", "bottom"), (0, -6, "center", "top"))
    taken: list[Bbox] = []
    for name, place in points:
        for right, up, horizontal, vertical in sides:
            text = axes.annotate(name, place, (right, up), textcoords="offset points", size=10)
            text.set(ha=horizontal, va=vertical)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


if __name__ == "__main__":
    draw_module_map(
        biggraph.Embeddings.open("demo-output/checkpoint"), Path("demo-output/modules.png")
    )
