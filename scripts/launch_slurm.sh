#!/usr/bin/env bash
#SBATCH --job-name=biggraph
#SBATCH --ntasks=2
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
# Runs a coordinator step and one worker a task in a Slurm job.
set -eu -o pipefail

usage() {
    cat <<'HELP'
Usage: sbatch [sbatch options] launch_slurm.sh [options] CONFIG [key=value ...]

One Slurm job: the coordinator on the job's first node, and one worker a task (--ntasks). A worker
that crashes is started again alone; when a node fails or the job is preempted, Slurm queues it
again and the run goes on from its log. So it does when the same command is submitted again, for
instance after the time limit.

  --bind ADDRESS      of the first node, for the coordinator to listen on (default: what the
                      node's name resolves to)
  --max-restarts N    how often one crashed process is started again (default 20)
  --pause SECONDS     before it is started again (default 5)
  --secret-file FILE  job secret on storage that all nodes share, mode 0600; made if absent
                      (default: ~/.biggraph/slurm-JOB.secret, removed at the end)
  --help              show this message and exit

The graph, the run directory and the secret's folder must be on storage that all nodes share.
`biggraph` must be on PATH in the job: activate the environment before sbatch.
Exit status: 0 when the run finished; 130 when stopped; 1 on a failure; 2 on a mistake.

Example:  sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=16 --time=12:00:00 \
              launch_slurm.sh run.toml
HELP
}

fail() {
    echo "launch_slurm.sh: $1" >&2
    exit 2
}

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

# Keep one process running: supervise RESTARTS PAUSE COMMAND [argument ...]. It ends with the
# process's status when that finished (0), was stopped (130) or must not be repeated (2).
# shellcheck disable=SC2329 # called in the steps
supervise() {
    local left=$1 pause=$2 stopping=0 child='' status
    shift 2
    trap 'stopping=1' TERM INT # Slurm signals every process of the step: nothing to pass on
    while :; do
        "$@" </dev/null &
        child=$!
        [ "$stopping" -eq 0 ] || kill -TERM "$child" 2>/dev/null || : # it came a moment too late
        status=0
        await "$child" || status=$?
        [ "$stopping" -eq 0 ] || exit 130
        case $status in 0 | 2 | 130) exit "$status" ;; esac
        if [ "$left" -le 0 ]; then
            echo "launch_slurm.sh: $2 ended with status $status; no restarts left" >&2
            exit "$status"
        fi
        left=$((left - 1))
        echo "launch_slurm.sh: $2 ended with status $status; starting it again ($left left)" >&2
        sleep "$pause" &
        child=$!
        await "$child" || :
        [ "$stopping" -eq 0 ] || exit 130
    done
}

# A step whose tasks are supervised: step "srun options" COMMAND [argument ...].
step() {
    local options
    read -r -a options <<<"$1"
    shift
    # Slurm copied this script away: the tasks get its functions as text.
    srun --mpi=none --kill-on-bad-exit=0 "${options[@]}" bash -c "
        $(declare -f await supervise)
        export BIGGRAPH_WORKER=slurm-\$SLURM_JOB_ID-\$SLURM_PROCID
        supervise \"\$@\"" supervise "$max_restarts" "$pause" "$@" &
}

address() {
    getent ahostsv4 "${SLURMD_NODENAME:-$(uname -n)}" | awk '$1 !~ /^127\./ {print $1; exit}'
}

make_secret() {
    (
        umask 077
        mkdir -p "$(dirname "$1")"
        set -C # two jobs must not make it twice
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$1"
    )
}

bind='' max_restarts=20 pause=5 secret_file='' own_secret=0
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --bind) need $# "$1" && bind=$2 && shift 2 ;;
        --max-restarts) need $# "$1" && max_restarts=$2 && shift 2 ;;
        --pause) need $# "$1" && pause=$2 && shift 2 ;;
        --secret-file) need $# "$1" && secret_file=$2 && shift 2 ;;
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
done
[ $# -ge 1 ] || fail "no run file given; see --help"
config=$1
shift
[ -n "${SLURM_JOB_ID:-}" ] || fail "not in a Slurm job: start it with sbatch; see --help"
[ -r "$config" ] || fail "cannot read the run file $config"
whole --max-restarts "$max_restarts"
for tool in biggraph srun; do
    command -v "$tool" >/dev/null || fail "$tool is not on PATH in the job"
done
: "${bind:=$(address || :)}"
[ -n "$bind" ] || fail "this node's name leads to no address beyond loopback: give --bind"

case $secret_file in
    '' | /*) ;;
    *) secret_file=$PWD/$secret_file ;;
esac
if [ -z "$secret_file" ]; then
    secret_file=$HOME/.biggraph/slurm-$SLURM_JOB_ID.secret
    own_secret=1
fi
[ -s "$secret_file" ] || make_secret "$secret_file" || [ -s "$secret_file" ] ||
    fail "cannot make the secret file $secret_file"
[ "$own_secret" -eq 0 ] || trap 'rm -f "$secret_file"' EXIT

# Slurm itself signals the steps, at the time limit and on scancel; this shell only waits for them.
stopped=0
trap 'stopped=1' TERM INT
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
step "--overlap --nodes=1 --ntasks=1 --nodelist=${SLURMD_NODENAME:-$(uname -n)}" \
    biggraph coordinator "$config" "cluster.bind=$bind" "cluster.secret_file=$secret_file" "$@"
coordinator=$!
step "--overlap --ntasks=${SLURM_NTASKS:-1}" \
    biggraph worker "$config" "cluster.secret_file=$secret_file" "$@"
workers=$!

while kill -0 "$coordinator" 2>/dev/null && kill -0 "$workers" 2>/dev/null; do wait -n || :; done
if kill -0 "$coordinator" 2>/dev/null; then
    status=0
    await "$workers" || status=$?
    if [ "$status" -ne 0 ] && [ "$stopped" -eq 0 ]; then
        echo "launch_slurm.sh: a worker failed and none is left; ending the coordinator" >&2
        kill -TERM "$coordinator" 2>/dev/null || :
    fi
fi
status=0
await "$coordinator" || status=$?
[ "$status" -eq 0 ] || kill -TERM "$workers" 2>/dev/null || :
await "$workers" || :
[ "$status" -ne 130 ] || echo "launch_slurm.sh: stopped; submit the job again to go on" >&2
exit "$status"
