#!/usr/bin/env bash
# Starts the coordinator here and workers on other machines over ssh, and keeps them running.
set -eu -o pipefail

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
anything (keys, known hosts). The job secret is BIGGRAPH_SECRET if set, else a new random one; it
travels through ssh's standard input and appears on no command line and in no file.
Exit status: the coordinator's; 130 when stopped; 1 when every worker failed; 2 on a mistake.

Example:  launch_ssh.sh --hosts hosts.txt --bind 10.0.0.1 run.toml train.epochs=20
HELP
}

fail() {
    echo "launch_ssh.sh: $1" >&2
    exit 2
}

say() { echo "launch_ssh.sh: $1" >&2; }

need() { [ "$1" -ge 2 ] || fail "option $2 needs a value"; }

whole() { case $2 in '' | *[!0-9]*) fail "$1 must be a whole number, found: $2" ;; esac }

# One argument, quoted for a POSIX shell.
# shellcheck disable=SC2329 # called by start_worker
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

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

# The coordinator, in the background; sets `child`.
# shellcheck disable=SC2329 # called by supervise
start_coordinator() {
    BIGGRAPH_SECRET=$secret biggraph coordinator "$config" "${listen[@]}" "$@" </dev/null &
    child=$!
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

# Tell a process to stop: a worker by the end of its input.
end() {
    exec 4>&-
    [ "$name" != coordinator ] || [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :
}

# Keep one process running: supervise NAME START [argument ...]. It ends with the process's
# status when that finished (0), was stopped (130) or must not be repeated (2).
supervise() {
    local name=$1 status left=$max_restarts
    shift
    stopping=0 child=
    trap 'stopping=1; end' TERM
    trap '' INT
    trap : PIPE
    while :; do
        "$@"
        [ "$stopping" -eq 0 ] || end
        status=0
        await "$child" || status=$?
        exec 4>&-
        [ "$stopping" -eq 0 ] || exit 130
        case $status in 0 | 2 | 130) exit "$status" ;; esac
        if [ "$left" -le 0 ]; then
            say "$name ended with status $status; no restarts left"
            exit "$status"
        fi
        left=$((left - 1))
        say "$name ended with status $status; starting it again ($left restarts left)"
        child=
        sleep "$pause" &
        wait $! || : # a signal ends it
        [ "$stopping" -eq 0 ] || exit 130
    done
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

# End the workers, then the coordinator.
stop() {
    trap - INT TERM
    say "stopping"
    for pid in ${workers[@]+"${workers[@]}"}; do kill -TERM "$pid" 2>/dev/null || :; done
    for pid in ${workers[@]+"${workers[@]}"}; do await "$pid" || :; done
    kill -TERM "$coordinator" 2>/dev/null || :
    await "$coordinator" || :
}

hosts='' bind='' port=0 folder=$PWD program=biggraph max_restarts=20 pause=5
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
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
done
[ $# -ge 1 ] || fail "no run file given; see --help"
config=$1
shift
[ -n "$hosts" ] || fail "no --hosts file given; see --help"
[ -r "$hosts" ] || fail "cannot read the hosts file $hosts"
[ -n "$bind" ] || fail "no --bind address given: the address of this machine that the hosts reach"
[ -r "$config" ] || fail "cannot read the run file $config"
whole --port "$port"
whole --max-restarts "$max_restarts"
targets=()
read_hosts
for tool in biggraph ssh; do
    command -v "$tool" >/dev/null || fail "$tool is not on PATH"
done

secret=${BIGGRAPH_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
unset BIGGRAPH_SECRET
listen=("cluster.bind=$bind")
[ "$port" -eq 0 ] || listen+=("cluster.port=$port")

workers=()
supervise coordinator start_coordinator "$@" &
coordinator=$!
trap 'stop; exit 130' INT TERM
for target in "${targets[@]}"; do
    supervise "${target#* }" start_worker "${target% *}" "${target#* }" "$@" &
    workers+=("$!")
done

# Over when the coordinator ends, or when no worker is left and none of them saw the end of the run.
finished=0
left=("${workers[@]}")
while kill -0 "$coordinator" 2>/dev/null && [ ${#left[@]} -gt 0 ]; do
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
if [ ${#left[@]} -eq 0 ] && [ "$finished" -eq 0 ] && kill -0 "$coordinator" 2>/dev/null; then
    say "every worker failed"
    stop
    exit 1
fi
status=0
await "$coordinator" || status=$?
[ "$status" -eq 0 ] || stop
for pid in "${workers[@]}"; do await "$pid" || :; done
exit "$status"
