# shellcheck shell=bash
# What the launch scripts share. A script that sources this file has set `launcher`, its name, and
# sets `coordinator`, `servers` and `workers`, the process ids of what it starts. Bash 4.4 or newer.

: "${launcher:?}"
max_restarts=20
coordinator='' servers=() workers=()
together=0 # 1: a signal that stops one of them has reached all
signalled=0 # 1: such a signal came; bash may then not know with which status a child ended

say() { echo "$launcher: $1" >&2; }

fail() {
    say "$1"
    exit 2
}

need() { [ "$1" -ge 2 ] || fail "option $2 needs a value"; }

whole() { case $2 in '' | *[!0-9]*) fail "$1 must be a whole number, found: $2" ;; esac }

unknown() { fail "unknown option $1; see --help"; }

# What is left after the options: check_run CONFIG [key=value ...].
check_run() {
    [ $# -ge 1 ] || fail "no run file given; see --help"
    [ -f "$1" ] && [ -r "$1" ] || fail "cannot read the run file $1"
    whole --max-restarts "$max_restarts"
}

check_tools() {
    local tool
    for tool; do command -v "$tool" >/dev/null || fail "$tool is not on PATH"; done
}

# Set `separate`, the number of parameter servers that are processes: find_servers CONFIG
# [key=value ...]. TOML, JSON and overrides all write the key and then the number; the last one
# counts. A number that is misread starts too many, which biggraph refuses, or too few, for which
# its workers say that they wait.
find_servers() {
    local config=$1 key='parameter_servers["'\'']\{0,1\}[[:space:]]*[=:][[:space:]]*'
    shift
    separate=$({ cat "$config" && printf '\n%s\n' "$@"; } |
        sed -n "s/^\([^#]*[^#_[:alnum:]]\)\{0,1\}$key\([^]},#[:space:]]*\).*/\2/p" | tail -n 1)
    whole cluster.parameter_servers "${separate:=1}"
    [ "$separate" -gt 1 ] || separate=0 # the coordinator is the only one
}

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

# Keep one process running: supervise NAME START [argument ...]. START puts the process into the
# background and its id into `child`; `end` tells it to stop. A trap of the caller sets `stopping`.
# Ends with the process's status when that finished (0), was stopped (130) or must not be
# repeated (2).
# shellcheck disable=SC2154 # pause, child and stopping are the caller's
supervise() {
    local name=$1 status left=$max_restarts
    shift
    while :; do
        "$@"
        [ "$stopping" -eq 0 ] || end # the signal came a moment too early
        status=0
        await "$child" || status=$?
        [ "$stopping" -eq 0 ] || exit 130
        case $status in 0 | 2 | 130) exit "$status" ;; esac
        if [ "$left" -le 0 ]; then
            say "$name ended with status $status; no restarts left"
            exit "$status"
        fi
        left=$((left - 1))
        say "$name ended with status $status; starting it again ($left restarts left)"
        child=''
        sleep "$pause" &
        wait $! || : # a signal ends it
        [ "$stopping" -eq 0 ] || exit 130
    done
}

# End the workers, then those whom they need.
stop() {
    local pid
    trap - INT TERM
    say "stopping"
    for pid in "${workers[@]}"; do kill -TERM "$pid" 2>/dev/null || :; done
    for pid in "${workers[@]}"; do await "$pid" || :; done
    for pid in "${servers[@]}" $coordinator; do kill -TERM "$pid" 2>/dev/null || :; done
    for pid in "${servers[@]}" $coordinator; do await "$pid" || :; done
}

# Take those that ended out of an array of process ids: reap NAME. Sets `good` to 1 when one of
# them ended with 0, else to 0, and `bad` to another status with which one ended, else to 0.
reap() {
    local -n pids=$1
    local pid status running=()
    good=0 bad=0
    for pid in "${pids[@]}"; do
        status=0
        if kill -0 "$pid" 2>/dev/null; then
            running+=("$pid")
        else
            await "$pid" || status=$?
            [ "$status" -ne 0 ] && bad=$status || good=1
        fi
    done
    pids=("${running[@]}")
}

# End all for a reason and this script: give_up REASON STATUS-OF-ONE.
give_up() {
    local status=$2
    [ "$signalled" -eq 0 ] || status=130
    [ "$status" -eq 130 ] || say "$1"
    stop
    case $status in 2 | 130) exit "$status" ;; *) exit 1 ;; esac
}

# Wait for the end of the run, and end this script with it: when the coordinator ends, when a
# parameter server fails, or when no worker is left and none of them saw the end of the run.
attend() {
    # shellcheck disable=SC2034 # reap reads it by its name
    local serving=("${servers[@]}") working=("${workers[@]}") finished=0 last=0 status=0 pid
    while [ -z "$coordinator" ] || kill -0 "$coordinator" 2>/dev/null; do
        reap serving
        case $bad in 0 | 130) ;; *) give_up "a parameter server failed" "$bad" ;; esac
        reap working
        finished=$((finished | good))
        [ "$bad" -eq 0 ] || last=$bad
        if [ ${#working[@]} -eq 0 ] && [ ${#workers[@]} -gt 0 ]; then
            [ "$finished" -eq 1 ] || give_up "every worker failed" "$last"
            break
        fi
        wait -n || :
    done
    [ -z "$coordinator" ] || await "$coordinator" || status=$?
    [ "$status" -eq 0 ] || [ "$signalled" -eq 0 ] || status=130
    if [ "$status" -ne 0 ] && { [ "$status" -ne 130 ] || [ "$together" -eq 0 ]; }; then stop; fi
    for pid in "${workers[@]}" "${servers[@]}"; do await "$pid" || :; done
    return "$status"
}
