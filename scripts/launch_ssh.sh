#!/usr/bin/env bash
# Starts the coordinator (and parameter servers) here and workers on other machines over ssh, and keeps them running.
set -eu -o pipefail
launcher=launch_ssh.sh
# shellcheck source-path=SCRIPTDIR source=launch_common.sh
. "$(dirname "$0")/launch_common.sh"

usage() {
    cat <<'HELP'
Usage: launch_ssh.sh --hosts FILE --bind ADDRESS [options] CONFIG [key=value ...]

Start the coordinator on this machine and workers over ssh; end them all on Ctrl-C.

  --hosts FILE        one "HOST [WORKERS]" a line (default 1 worker); # starts a comment
  --bind ADDRESS      address of this machine that the coordinator listens on; the hosts must
                      reach it, and only they should
  --port N            of the coordinator (default: any that is free)
  --dir DIR           folder on the hosts in which CONFIG and its paths hold (default: this one)
  --biggraph PROGRAM  on the hosts, such as /opt/venv/bin/biggraph (default: biggraph)
  --max-restarts N    how often one crashed process is started again (default 20)
  --pause SECONDS     before it is started again (default 5)
  --help              show this message and exit

The graph and the run directory must be the same storage on every machine. ssh must not ask for
anything (keys, known hosts). Where cluster.parameter_servers is above 1, they run on this machine
too, on the ports after --port. The job secret is BIGGRAPH_SECRET if set, else a new random one;
it travels through ssh's standard input and appears on no command line and in no file.
Exit status: the coordinator's; 130 when stopped; 1 when every worker or a parameter server failed;
2 on a mistake.

Example:  launch_ssh.sh --hosts hosts.txt --bind 10.0.0.1 run.toml train.epochs=20
HELP
}

# One argument, quoted for a POSIX shell.
# shellcheck disable=SC2329 # called by start_worker
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# What a host runs. Its input is one line, the secret, and then stays open: when it ends, because
# the launcher stops or the connection is lost, the worker is told to stop as well.
# shellcheck disable=SC2016
remote='
IFS= read -r BIGGRAPH_SECRET || exit 1
BIGGRAPH_WORKER=$1
export BIGGRAPH_SECRET BIGGRAPH_WORKER
cd "$2" || exit 2
shift 2
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
trap "kill -TERM $child 2>/dev/null" TERM INT HUP
(
    trap - TERM INT HUP
    while read -r _ <&3; do :; done
    kill -TERM "$child"
    sleep 60
    kill -KILL "$child"
) </dev/null >/dev/null 2>&1 &
watcher=$!
exec 3<&-
while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
done
kill "$watcher" 2>/dev/null
exit "$status"
'

# A process on this machine: start_here ROLE [argument ...]; sets `child`.
# shellcheck disable=SC2329 # called by supervise
start_here() {
    local role=$1
    shift
    BIGGRAPH_SECRET=$secret biggraph "$role" "$config" "${listen[@]}" "$@" </dev/null &
    child=$! here=1
}

# A worker on a host: start_worker HOST NAME [key=value ...]; sets `child`.
# shellcheck disable=SC2329 # called by supervise
start_worker() {
    local host=$1 name=$2 argument command
    shift 2
    command="exec sh -c $(quote "$remote") sh"
    for argument in "$name" "$folder" "$program" worker "$config" "$@"; do
        command="$command $(quote "$argument")"
    done
    exec 4> >(exec ssh -T -o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4 \
        -- "$host" "$command")
    child=$!
    printf '%s\n' "$secret" >&4 || :
}

# Tell the process to stop: a worker by the end of its input.
end() {
    exec 4>&-
    [ -z "$here" ] || [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :
}

# One process and its restarts: keep NAME START [argument ...].
keep() {
    stopping=0 child='' here=''
    trap 'stopping=1; end' TERM
    trap '' INT
    trap : PIPE
    supervise "$@"
}

# Fill `targets`, one "HOST NAME" a worker, before anything is started.
read_hosts() {
    local host count line index
    while IFS= read -r line || [ -n "$line" ]; do
        read -r host count line <<<"${line%%#*}" || :
        [ -n "$host" ] || continue
        case $host in -*) fail "$hosts: a host cannot start with -: $host" ;; esac
        [ -z "$line" ] || fail "$hosts: expected HOST [WORKERS], found more on the line of $host"
        whole "$hosts: number of workers on $host" "${count:=1}"
        for ((index = 0; index < count; index++)); do targets+=("$host $host-$index"); done
    done <"$hosts"
    [ ${#targets[@]} -gt 0 ] || fail "$hosts names no host"
}

hosts='' bind='' port=0 folder=$PWD program=biggraph pause=5
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit 0 ;;
        --hosts) need $# "$1" && hosts=$2 && shift 2 ;;
        --bind) need $# "$1" && bind=$2 && shift 2 ;;
        --port) need $# "$1" && port=$2 && shift 2 ;;
        --dir) need $# "$1" && folder=$2 && shift 2 ;;
        --biggraph) need $# "$1" && program=$2 && shift 2 ;;
        --max-restarts) need $# "$1" && max_restarts=$2 && shift 2 ;;
        --pause) need $# "$1" && pause=$2 && shift 2 ;;
        -*) unknown "$1" ;;
        *) break ;;
    esac
done
check_run "$@"
config=$1
shift
find_servers "$config" "$@"
[ -n "$hosts" ] || fail "no --hosts file given; see --help"
[ -r "$hosts" ] || fail "cannot read the hosts file $hosts"
[ -n "$bind" ] || fail "no --bind address given: the address of this machine that the hosts reach"
whole --port "$port"
targets=()
read_hosts
check_tools biggraph ssh

secret=${BIGGRAPH_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
unset BIGGRAPH_SECRET
listen=("cluster.bind=$bind")
[ "$port" -eq 0 ] || listen+=("cluster.port=$port")

trap 'stop; exit 130' INT TERM
keep coordinator start_here coordinator "$@" &
coordinator=$!
for ((index = 0; index < separate; index++)); do
    keep "parameter-server-$index" start_here parameter-server "$@" --index "$index" &
    servers+=("$!")
done
for target in "${targets[@]}"; do
    keep "${target#* }" start_worker "${target% *}" "${target#* }" "$@" &
    workers+=("$!")
done
attend
