# What the scripts beside this one share: a directory for data, downloads, free ports, servers that
# are started and, when the script ends, ended. To be sourced, under `set -euo pipefail`.

# Where they listen: loopback, unless who needs them is elsewhere (the pods of conformance/cluster).
host=${TESK_SERVERS_HOST:-127.0.0.1}
work=$(mktemp -d)
pids=()
stop() {
    for pid in "${pids[@]}"; do
        # Each server leads a process group of its own, with its children.
        kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    pids=()
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
# thrice <command...>: what downloads, and may do better later.
thrice() { "$@" || { sleep 5; "$@"; } || { sleep 30; "$@"; }; }

free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null || break
    done
    echo "$port"
}

# start <port> <log> <command...>: a server in the background, and waits until it answers.
start() {
    local port=$1 log=$2
    shift 2
    setsid "$@" >"$log" 2>&1 &
    pids+=($!)
    for _ in $(seq 3000); do
        (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null && return
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "error: no answer from: $*" >&2
    tail -20 "$log" >&2
    exit 1
}
