#!/usr/bin/env bash
#SBATCH --job-name=biggraph
#SBATCH --ntasks=2
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@60
# Runs a coordinator step, parameter server steps and one worker a task in a Slurm job.
set -eu -o pipefail
launcher=launch_slurm.sh
# sbatch runs a copy of this script; what it shares with others lies beside the original.
folder=$(dirname "$0")
if [ ! -e "$folder/launch_common.sh" ]; then
    command=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's/^ *Command=//p' | head -n 1)
    folder=$(dirname "${command%" $*"}")
fi
# shellcheck source-path=SCRIPTDIR source=launch_common.sh
. "$folder/launch_common.sh"

usage() {
    cat <<'HELP'
Usage: sbatch [sbatch options] launch_slurm.sh [options] CONFIG [key=value ...]

One Slurm job: the coordinator on the job's first node, and one worker a task (--ntasks). A worker
that crashes is started again alone; when a node fails or the job is preempted, Slurm queues it
again and the run goes on from its log. So it does when the same command is submitted again, for
instance after the time limit. A minute before that, workers finish their buckets and commit;
`scancel --signal=USR1 JOB` has the same effect. Plain scancel ends all at once: what was not
committed is trained again.

  --bind ADDRESS      of the first node, for the coordinator to listen on (default: what the
                      node's name resolves to); so do parameter servers, which run there too
                      where cluster.parameter_servers is above 1
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

# shellcheck disable=SC2329 # called in the steps
start() {
    (trap '' USR1 && exec "$@") </dev/null & # that signal is for `supervise`
    child=$!
}

# shellcheck disable=SC2329 # called in the steps
end() { kill -TERM "$child" 2>/dev/null || :; }

# A step whose tasks are supervised: step NAME "srun options" COMMAND [argument ...].
step() {
    local name=$1 on_usr1='' options
    [ "$name" != worker ] || on_usr1='stopping=1; end' # the others stay until the workers are gone
    read -r -a options <<<"$2"
    shift 2
    # The tasks get functions as text. Slurm signals every process of a step: no TERM to pass on.
    srun --mpi=none --kill-on-bad-exit=0 "${options[@]}" bash -c "
        $(declare -f say await supervise start end)
        launcher=$launcher max_restarts=\$1 pause=\$2 stopping=0 child=
        shift 2
        export BIGGRAPH_WORKER=slurm-\$SLURM_JOB_ID-\$SLURM_PROCID
        trap 'stopping=1' TERM INT
        trap '$on_usr1' USR1
        supervise \"\$@\"" supervise "$max_restarts" "$pause" "$name" start "$@" &
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

# shellcheck disable=SC2329 # called when the script ends
leave() {
    [ "$own_secret" -eq 0 ] || rm -f "$secret_file"
    [ "$1" -ne 130 ] || say "stopped; submit the job again to go on"
}

bind='' pause=5 secret_file='' own_secret=0
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --bind) need $# "$1" && bind=$2 && shift 2 ;;
        --max-restarts) need $# "$1" && max_restarts=$2 && shift 2 ;;
        --pause) need $# "$1" && pause=$2 && shift 2 ;;
        --secret-file) need $# "$1" && secret_file=$2 && shift 2 ;;
        -*) unknown "$1" ;;
        *) break ;;
    esac
done
check_run "$@"
config=$1
shift
find_servers "$config" "$@"
[ -n "${SLURM_JOB_ID:-}" ] || fail "not in a Slurm job: start it with sbatch; see --help"
check_tools biggraph srun
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
trap 'leave $?' EXIT

# Slurm itself signals the steps, at the time limit and on scancel; this shell only waits for them.
together=1
trap signalled=1 TERM INT USR1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
first="--overlap --nodes=1 --ntasks=1 --nodelist=${SLURMD_NODENAME:-$(uname -n)}"
set -- "cluster.secret_file=$secret_file" "$@"
step coordinator "$first" biggraph coordinator "$config" "cluster.bind=$bind" "$@"
coordinator=$!
for ((index = 0; index < separate; index++)); do
    step "parameter-server-$index" "$first" \
        biggraph parameter-server "$config" "cluster.bind=$bind" "$@" --index "$index"
    servers+=("$!")
done
step worker "--overlap --ntasks=${SLURM_NTASKS:-1}" biggraph worker "$config" "$@"
workers=("$!")
attend
