"""Metrics: in place in a folder, a draft that is published elsewhere; a torn line is cut off."""

import json

from biggraph.storage.folder import Folder
from biggraph.storage.metrics import keep_metrics
from biggraph.storage.opening import local_copy

NAME = "metrics.jsonl"


class Shelf:
    """As much of a place as can hold one file, replaced as a whole."""

    def __init__(self):
        self.files: dict[str, bytes] = {}

    def size(self, name):
        return len(self.files[name]) if name in self.files else None

    def read(self, name):
        return self.files[name]

    def replace(self, name, data):
        self.files[name] = data


def events(lines):
    return [json.loads(line)["event"] for line in lines.splitlines()]


def test_a_folder_is_appended_to(tmp_path):
    place = Folder(tmp_path)
    keep_metrics(place).write("start")
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"event": "to')
    keep_metrics(place).write("bucket")
    assert events((tmp_path / NAME).read_bytes()) == ["start", "bucket"]
    assert local_copy(place, NAME) == tmp_path / NAME


def test_elsewhere_the_lines_so_far_are_published_with_all_but_the_frequent_ones():
    place = Shelf()
    first = keep_metrics(place)
    first.write("start")
    first.write("bucket")
    assert events(place.files[NAME]) == ["start"]
    first.write("commit")
    place.files[NAME] += b"torn"
    second = keep_metrics(place)
    second.write("start")
    assert events(place.files[NAME]) == ["start", "bucket", "commit", "start"]
