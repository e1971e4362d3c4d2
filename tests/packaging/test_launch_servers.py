"""Parameter servers of their own: when the launch scripts start them, and what they end with."""

import pytest

from tests.packaging.launches import LAUNCHES, TORCHRUN

RUN_FILES = {
    "table": "[model]\ndimension = 8\n[cluster]\nparameter_servers = 2 # of them\n",
    "key": "cluster.parameter_servers=2",
    "inline": 'cluster = { transport = "flight", parameter_servers = 2}\n',
    "quoted": "[cluster]\n'parameter_servers' = 2\n# parameter_servers = 7\n",
    "json": '{"cluster": {"parameter_servers": 2, "workers": 7}}',
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", LAUNCHES)
@pytest.mark.parametrize("where", ["file", "override"])
def test_parameter_servers_start_where_the_coordinator_does(stage, kind: str, where: str) -> None:
    command, env, workers = LAUNCHES[kind]
    if where == "file":
        (stage.root / "run.toml").write_text(RUN_FILES["table"])
    else:
        (stage.root / "run.toml").write_text("[cluster]\nparameter_servers = 7\n")
        command = (*command, "cluster.parameter_servers=2")
    process = stage.start(*command, **env)
    stage.wait_for_calls("server-*", 2)
    stage.wait_for_calls("worker-*", workers)
    stage.wait_for_calls("coordinator", 1)
    stage.finish()
    status, errors = stage.end(process)
    assert status == 0, errors
    (coordinator,) = stage.calls("coordinator")
    for index in range(2):
        (server,) = stage.calls(f"server-{index}")
        assert stage.args(server)[0] == "parameter-server"
        assert stage.args(server)[-2:] == ["--index", str(index)]
        assert stage.args(server)[1:-2] == stage.args(coordinator)[1:]
        secrets = [stage.env(call).get("BIGGRAPH_SECRET") for call in (server, coordinator)]
        assert secrets[0] == secrets[1]


@pytest.mark.multiprocess
@pytest.mark.parametrize("text", RUN_FILES.values(), ids=RUN_FILES)
def test_the_number_of_parameter_servers_is_read_from_every_run_file(stage, text: str) -> None:
    (stage.root / "run.toml").write_text(text)
    stage.finish()
    assert stage.end(stage.start(*TORCHRUN))[0] == 0
    assert len(stage.calls("server-*")) == 2


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "text",
    ["", "[cluster]\nparameter_servers = 1", "# parameter_servers = 3", "aparameter_servers=3"],
)
def test_one_parameter_server_is_the_coordinator(stage, text: str) -> None:
    (stage.root / "run.toml").write_text(text)
    stage.finish()
    assert stage.end(stage.start(*TORCHRUN))[0] == 0
    assert stage.calls("server-*") == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("role", ["coordinator", "workers"])
def test_torchrun_roles_keep_parameter_servers_with_the_coordinator(stage, role: str) -> None:
    stage.finish()
    command = ("launch_torchrun.sh", "--role", role, "run.toml", "cluster.parameter_servers=2")
    assert stage.end(stage.start(*command))[0] == 0
    counts = [len(stage.calls(name)) for name in ("coordinator", "server-*", "worker-*")]
    assert counts == ([1, 2, 0] if role == "coordinator" else [0, 0, 1])


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_a_crashed_parameter_server_is_started_again(stage, kind: str) -> None:
    command, env, _ = LAUNCHES[kind]
    process = stage.start(*command, "cluster.parameter_servers=2", **env, FAKE_SERVER="9 finish")
    stage.wait_for_calls("server-*", 4)
    stage.finish()
    assert stage.end(process)[0] == 0
    assert len(stage.calls("coordinator")) == 1


@pytest.mark.multiprocess
@pytest.mark.parametrize(("plan", "expected"), [("2", 2), ("7", 1)])
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_failed_parameter_server_ends_the_cluster(
    stage, kind: str, plan: str, expected: int
) -> None:
    command, env, workers = LAUNCHES[kind]
    command = (command[0], "--max-restarts", "1", *command[1:], "cluster.parameter_servers=2")
    plans = {"FAKE_WORKER": "run", "FAKE_COORDINATOR": "run", "FAKE_SERVER": f"after-{plan}"}
    process = stage.start(*command, **env, **plans)
    stage.wait_for_calls("worker-*", workers)
    stage.wait_for_calls("coordinator", 1)
    stage.finish()
    status, errors = stage.end(process)
    assert status == expected
    assert "a parameter server failed" in errors
    stage.wait_for(lambda: not stage.alive(), "the end of the others")


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ssh", "torchrun"])
def test_workers_end_before_those_whom_they_need(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    slow = "\n".join(
        [
            "#!/bin/sh",
            "trap 'sleep 0.3; echo worker >>$FAKE/order; exit 130' TERM",
            "touch $FAKE/up",
        ]
    )
    other = "trap 'echo other >>$FAKE/order; exit 130' TERM"
    loop = "while :; do sleep 0.05; done"
    (stage.root / "bin/biggraph").write_text(f'{slow}.$$\n[ "$1" = worker ] || {other}\n{loop}\n')
    process = stage.start(*command, "cluster.parameter_servers=2", **env)
    stage.wait_for(lambda: len(list(stage.root.glob("fake/up.*"))) == workers + 3, "all")
    process.terminate()
    assert stage.end(process)[0] == 130
    order = (stage.root / "fake/order").read_text().split()
    assert order == ["worker"] * workers + ["other"] * 3
