#!/usr/bin/env bash
# Starts a coordinator and workers on this machine, each under a torchrun of its own.
set -eu -o pipefail
launcher=launch_torchrun.sh
# shellcheck source-path=SCRIPTDIR source=launch_common.sh
. "$(dirname "$0")/launch_common.sh"

usage() {
    cat <<'HELP'
Usage: launch_torchrun.sh [options] CONFIG [key=value ...]

Start the coordinator and workers on this machine, each under its own torchrun: torchrun starts a
process that crashed again, alone, while the others go on.

  --workers N        worker processes here (default 1)
  --role ROLE        all (default), coordinator, or workers: with the last two, several machines
                     that share the storage make one cluster; then give the same BIGGRAPH_SECRET
                     to all, and cluster.bind=ADDRESS to the coordinator. Parameter servers,
                     where cluster.parameter_servers is above 1, start with the coordinator
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

# A role under its own torchrun, in the background: launch ROLE [argument ...].
launch() {
    torchrun --standalone --nproc-per-node=1 --max-restarts="$max_restarts" -m biggraph "$@" \
        </dev/null &
}

count=1 role=all
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --workers) need $# "$1" && count=$2 && shift 2 ;;
        --role) need $# "$1" && role=$2 && shift 2 ;;
        --max-restarts) need $# "$1" && max_restarts=$2 && shift 2 ;;
        -*) unknown "$1" ;;
        *) break ;;
    esac
done
check_run "$@"
config=$1
shift
find_servers "$config" "$@"
whole --workers "$count"
case $role in
    all | coordinator | workers) ;;
    *) fail "--role must be all, coordinator or workers, found: $role" ;;
esac
[ "$count" -ge 1 ] || fail "--workers must be at least 1, found: $count"
command -v torchrun >/dev/null || fail "torchrun is not on PATH; it comes with torch"

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
trap 'stop; exit 130' INT TERM
if [ "$role" != workers ]; then
    launch coordinator "$config" "$@"
    coordinator=$!
    for ((index = 0; index < separate; index++)); do
        launch parameter-server "$config" "$@" --index "$index"
        servers+=("$!")
    done
fi
if [ "$role" != coordinator ]; then
    name=${BIGGRAPH_WORKER:-$(uname -n)}
    for ((index = 0; index < count; index++)); do
        export BIGGRAPH_WORKER="$name-$index"
        launch worker "$config" "$@"
        workers+=("$!")
    done
fi
attend
