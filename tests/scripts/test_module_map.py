"""The demo's picture: topics are clear-cut and no two names overlap."""

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib, which the demo extra installs")
pytest.importorskip("sklearn", reason="needs scikit-learn, which the demo extra installs")


@pytest.fixture(scope="module")
def script(module_of):
    return module_of("module_map")


def test_a_module_has_one_topic(script):
    tops = [top for tops in script.TOPICS.values() for top in tops.split()]
    assert len(tops) == len(set(tops))


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        ("http.client", "network"),
        ("_socket", "network"),
        ("asyncio.queues", "concurrency"),
        ("antigravity", ""),
    ],
)
def test_topics_go_by_the_top_package(script, name, topic):
    assert script.topic_of(name) == topic


def test_names_do_not_overlap(script):
    figure, axes = script.plt.subplots()
    places_N2 = np.random.default_rng(0).random((60, 2))
    axes.scatter(*places_N2.T)
    figure.canvas.draw()
    script.label([(f"module{i}", place) for i, place in enumerate(places_N2)], axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 20
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    script.plt.close(figure)


def test_the_picture_is_written(script, tmp_path):
    names = ["json", "asyncio", "asyncio.queues", "unknown"]
    script.plot(names, np.arange(8.0).reshape(4, 2), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
