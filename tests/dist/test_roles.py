"""The coordinator's role in this process: what it says, and what it does about its endpoint."""

import pytest

from biggraph.config import make_config
from biggraph.dist.endpoint import ENDPOINT_FILE, SECRET_FILE, Endpoint, encode_endpoint
from biggraph.errors import StorageError
from biggraph.log import Reporter
from biggraph.storage import layout
from biggraph.storage.folder import Folder
from biggraph.storage.run import RunDirectory
from biggraph.train.meeting import parameters_file
from biggraph.train.roles import CoordinatorRole
from tests.dist.chaos.stage import make_graph

OTHER = encode_endpoint(Endpoint(term="other", host="127.0.0.1", port=9, job="j"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def open_role(graph, tmp_path):
    """Return a function that opens the coordinator of one run; it is closed with the test."""
    roles = []

    def make() -> CoordinatorRole:
        config = make_config(
            {"graph": {"path": str(graph)}, "checkpoint": {"path": str(tmp_path / "run")}}
        )
        roles.append(CoordinatorRole.open(config, restart=False, reporter=Reporter()))
        return roles[-1]

    yield make
    for role in roles:
        role.close()


def test_a_coordinator_says_what_is_trained_and_where(open_role, capsys):
    endpoint = open_role().endpoint
    plan, tables, where = capsys.readouterr().err.splitlines()
    assert "entities in 4 partitions, 3 relations" in plan
    assert "edges in 16 buckets" in plan
    assert tables == "tables 0 MiB (element-wise Adagrad)"
    assert where == f"coordinator listens on {endpoint.host}:{endpoint.port}"


def test_what_is_put_over_the_endpoint_does_not_stay(open_role):
    role = open_role()
    place, status = role.directory.place, role.service._coordinator.status(0.0)
    own = place.read(ENDPOINT_FILE)
    for damage in (
        lambda: place.replace(ENDPOINT_FILE, OTHER),
        lambda: place.remove(ENDPOINT_FILE),
    ):
        damage()
        role.look = 0.0
        role._tend(status)
        assert place.read(ENDPOINT_FILE) == own
    place.replace(ENDPOINT_FILE, OTHER)
    role._tend(status)  # too early to look again
    assert place.read(ENDPOINT_FILE) == OTHER


def test_a_coordinator_that_was_replaced_leaves_the_endpoint_alone(open_role, monkeypatch):
    role = open_role()
    place, status = role.directory.place, role.service._coordinator.status(0.0)
    monkeypatch.setattr(place, "lock", lambda: lambda: None)  # as where there are no locks
    RunDirectory.resume(place).close()
    place.replace(ENDPOINT_FILE, OTHER)
    with pytest.raises(StorageError, match="another process has written this record"):
        role._tend(status)
    with pytest.raises(StorageError, match="another process has written this record"):
        role._publish()
    assert place.read(ENDPOINT_FILE) == OTHER


def test_storage_knows_what_processes_leave_when_they_die_while_they_say_where_they_are(tmp_path):
    names = [
        f"{name}.0123456789ab.tmp" for name in (ENDPOINT_FILE, parameters_file(12), SECRET_FILE)
    ]
    for name in names:
        (tmp_path / name).write_text("torn")
    assert sorted(layout.temporaries(Folder(tmp_path))) == sorted(names)
