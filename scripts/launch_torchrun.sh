#!/usr/bin/env bash
# Starts a coordinator and workers on this machine, each under a torchrun of its own.
set -eu -o pipefail

usage() {
    cat <<'HELP'
Usage: launch_torchrun.sh [options] CONFIG [key=value ...]

Start the coordinator and workers on this machine, each under its own torchrun: torchrun starts a
process that crashed again, alone, while the others go on.

  --workers N        worker processes here (default 1)
  --role ROLE        all (default), coordinator, or workers: with the last two, several machines
                     that share the storage make one cluster; then give the same BIGGRAPH_SECRET
                     to all, and cluster.bind=ADDRESS to the coordinator
  --max-restarts N   how often torchrun starts one process again (default 20)
  --help             show this message and exit

torchrun does not tell a mistake in the run file from a crash and repeats either. One group of all
workers, `torchrun --nproc-per-node=N -m biggraph worker CONFIG`, is correct too, but the death of
one then restarts all; with --nnodes=MIN:MAX set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 there, or
torch 2.13 hangs when a machine joins or is replaced.
Exit status: 0 when the run finished; 130 when stopped; 1 on a failure; 2 on a mistake.

Example:  launch_torchrun.sh --workers 4 run.toml train.epochs=20
HELP
}

fail() {
    echo "launch_torchrun.sh: $1" >&2
    exit 2
}

say() { echo "launch_torchrun.sh: $1" >&2; }

need() { [ "$1" -ge 2 ] || fail "option $2 needs a value"; }

whole() { case $2 in '' | *[!0-9]*) fail "$1 must be a whole number, found: $2" ;; esac }

# Exit status of a child, also when a trapped signal interrupts the wait.
await() {
    local status again
    while :; do
        status=0
        wait "$1" || status=$?
        kill -0 "$1" 2>/dev/null || break
    done
    again=0
    wait "$1" 2>/dev/null || again=$?
    [ "$again" -eq 127 ] || status=$again
    return "$status"
}

# A role under its own torchrun, in the background: launch ROLE [argument ...].
launch() {
    torchrun --standalone --nproc-per-node=1 --max-restarts="$max_restarts" -m biggraph "$@" \
        </dev/null &
}

# End the workers, then the coordinator.
stop() {
    trap - INT TERM
    say "stopping"
    for pid in ${workers[@]+"${workers[@]}"}; do kill -TERM "$pid" 2>/dev/null || :; done
    for pid in ${workers[@]+"${workers[@]}"}; do await "$pid" || :; done
    [ -n "$coordinator" ] || return 0
    kill -TERM "$coordinator" 2>/dev/null || :
    await "$coordinator" || :
}

count=1 role=all max_restarts=20
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --workers) need $# "$1" && count=$2 && shift 2 ;;
        --role) need $# "$1" && role=$2 && shift 2 ;;
        --max-restarts) need $# "$1" && max_restarts=$2 && shift 2 ;;
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
done
[ $# -ge 1 ] || fail "no run file given; see --help"
config=$1
shift
[ -r "$config" ] || fail "cannot read the run file $config"
whole --workers "$count"
whole --max-restarts "$max_restarts"
case $role in
    all | coordinator | workers) ;;
    *) fail "--role must be all, coordinator or workers, found: $role" ;;
esac
[ "$count" -ge 1 ] || fail "--workers must be at least 1, found: $count"
command -v torchrun >/dev/null || fail "torchrun is not on PATH; it comes with torch"

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
coordinator='' workers=()
trap 'stop; exit 130' INT TERM
if [ "$role" != workers ]; then
    launch coordinator "$config" "$@"
    coordinator=$!
fi
if [ "$role" != coordinator ]; then
    name=${BIGGRAPH_WORKER:-$(uname -n)}
    for ((index = 0; index < count; index++)); do
        export BIGGRAPH_WORKER="$name-$index"
        launch worker "$config" "$@"
        workers+=("$!")
    done
fi

# Over when the coordinator ends, or when no worker is left and none of them saw the end of the run.
finished=0
left=(${workers[@]+"${workers[@]}"})
while [ ${#left[@]} -gt 0 ]; do
    [ -z "$coordinator" ] || kill -0 "$coordinator" 2>/dev/null || break
    wait -n || :
    running=()
    for pid in "${left[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            running+=("$pid")
        elif await "$pid"; then
            finished=1
        fi
    done
    left=(${running[@]+"${running[@]}"})
done
if [ "$role" != coordinator ] && [ ${#left[@]} -eq 0 ] && [ "$finished" -eq 0 ]; then
    say "every worker failed"
    stop
    exit 1
fi
status=0
if [ -n "$coordinator" ]; then
    await "$coordinator" || status=$?
    [ "$status" -eq 0 ] || stop
fi
for pid in ${workers[@]+"${workers[@]}"}; do await "$pid" || :; done
exit "$status"
