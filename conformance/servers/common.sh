# What the scripts beside this one share: a place for programs, one for data, free ports, and the
# end of everything that was started. To be sourced from the root of the project, under
# `set -euo pipefail`.

home=${TESK_SERVERS:-$PWD/target/servers}
mkdir -p "$home"
work=$(mktemp -d)
pids=()

stop() {
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# wait_for <port> <log>: until somebody listens.
wait_for() {
    for _ in $(seq 300); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 0; fi
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "error: no server at port $1" >&2
    tail -20 "$2" >&2
    return 1
}
