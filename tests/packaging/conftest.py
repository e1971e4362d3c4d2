"""A stage for the launch scripts: executables on PATH that record how they were called.

The fake `biggraph` follows a plan, one word a start: an exit status, `run` (until SIGTERM, then
130), `finish` (until the test says that the run is finished, then 0; SIGTERM: 130) or `after-7`
(until then, and with that status).
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PATIENCE = 30.0  # seconds until a test gives up

RECORD = """\
#!/bin/sh
# record NAME: makes $FAKE/NAME.<n> with the arguments and the environment, and sets $calls.
record() {
    name=$1; shift; calls=1
    until mkdir "$FAKE/$name.$calls" 2>/dev/null; do calls=$((calls + 1)); done
    printf '%s\\n' "$@" >"$FAKE/$name.$calls/args.tmp"
    env >"$FAKE/$name.$calls/env"
    mv "$FAKE/$name.$calls/args.tmp" "$FAKE/$name.$calls/args"
}
"""

FAKES = {
    "biggraph": """
trap 'exit 130' TERM # before anybody knows that it runs
role=$1
if [ "$role" = worker ]; then
    record "worker-$BIGGRAPH_WORKER" "$@"
    plan=${FAKE_WORKER:-finish}
elif [ "$role" = parameter-server ]; then
    for index; do :; done # the last argument
    record "server-$index" "$@"
    plan=${FAKE_SERVER:-finish}
else
    record "$role" "$@"
    plan=${FAKE_COORDINATOR:-finish}
fi
set -- $plan
while [ "$calls" -gt 1 ] && [ $# -gt 1 ]; do shift; calls=$((calls - 1)); done
case $1 in
    run | finish)
        while [ "$1" = run ] || [ ! -e "$FAKE/finished" ]; do sleep 0.05; done ;;
    after-*)
        trap - TERM
        while [ ! -e "$FAKE/finished" ]; do sleep 0.05; done
        exit "${1#after-}" ;;
    *) exit "$1" ;;
esac
""",
    "ssh": """
record ssh "$@"
while [ "$1" != -- ]; do shift; done
shift 2
unset BIGGRAPH_SECRET
exec sh -c "$1"
""",
    "torchrun": """
record "torchrun-${BIGGRAPH_WORKER:-coordinator}" "$@"
while [ "$1" != -m ]; do shift; done
shift
"$@" & child=$!
trap 'kill -TERM $child' TERM
status=0; wait $child || status=$?
[ $status -le 128 ] || { status=0; wait $child || status=$?; }
exit $status
""",
    "srun": """
record srun "$@"
tasks=1
while :; do
    case $1 in
        --ntasks=*) tasks=${1#--ntasks=}; shift ;;
        --*) shift ;;
        *) break ;;
    esac
done
children=
pass_on() { # to every process of each task, also before it has a group of its own
    for child in $children; do kill "-$1" "-$child" 2>/dev/null || kill "-$1" "$child"; done
}
trap 'pass_on TERM' TERM
trap 'pass_on USR1' USR1
while [ "$tasks" -gt 0 ]; do
    tasks=$((tasks - 1))
    SLURM_PROCID=$tasks setsid "$@" & children="$children $!"
done
result=0
for child in $children; do
    while :; do
        status=0; wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    again=0; wait "$child" || again=$? # a signal may have ended the first wait
    [ "$again" -eq 127 ] || status=$again
    [ "$status" -le "$result" ] || result=$status
done
exit $result
""",
    # Slurm knows where the original of a submitted script is, and shows its arguments with it.
    "scontrol": """
echo "JobId=$SLURM_JOB_ID JobName=biggraph"
echo "   Command=$FAKE_COMMAND"
""",
}


@dataclass
class Stage:
    """A folder with a run file, a hosts file, the fakes and what they recorded."""

    root: Path
    processes: list[subprocess.Popen[str]]

    def calls(self, name: str) -> list[Path]:
        return sorted(path.parent for path in self.root.glob(f"fake/{name}.*/args"))

    def args(self, call: Path) -> list[str]:
        return (call / "args").read_text().splitlines()

    def env(self, call: Path) -> dict[str, str]:
        lines = (call / "env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(SCRIPTS / command[0]), *command[1:]],
            cwd=self.root,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
                "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
                "FAKE": str(self.root / "fake"),
                "HOME": str(self.root / "home"),
                **env,
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def finish(self) -> None:
        (self.root / "fake/finished").touch()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)

    def wait_for_calls(self, name: str, count: int) -> None:
        self.wait_for(lambda: len(self.calls(name)) == count, f"{count} calls of {name}")

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Return a launcher's status and messages once it ended by itself."""
        _, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, errors

    def alive(self) -> list[str]:
        """Return the command lines of this test's fakes that still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = process.read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended meanwhile
                continue
            if f"{self.root}/bin/" in command:
                found.append(command)
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    for folder in ("bin", "fake", "home"):
        (tmp_path / folder).mkdir()
    for name, text in FAKES.items():
        path = tmp_path / "bin" / name
        path.write_text(RECORD + text)
        path.chmod(0o755)
    (tmp_path / "run.toml").touch()
    (tmp_path / "hosts").write_text("# two machines\nnode1 2\nnode2  # one worker\n\n")
    stage = Stage(tmp_path, [])
    yield stage
    stage.finish()
    for process in stage.processes:
        with process, contextlib.suppress(ProcessLookupError):  # most ended by themselves
            os.killpg(process.pid, signal.SIGKILL)
