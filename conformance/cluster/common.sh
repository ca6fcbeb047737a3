# What the scripts beside this one share: settings, what must be there, downloads, and which clusters
# are up. To be sourced, under `set -euo pipefail`.
#
# A cluster is a directory $clusters/NAME. Its node holds a lock on `lock` in there; the kernel
# frees it when the node ends, however it ends. So a cluster is up if, and only if, it is locked.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=${TESK_CLUSTER_TOOLS:-$(cd "$here/../.." && pwd)/target/cluster}
# One place for the machine, because networks, links and control groups are the machine's too.
clusters=${TESK_CLUSTER_STATE:-/var/tmp/tesk-cluster}
node=node1

# What .ci/run and others take for "skipped", as Automake does.
skip() {
    echo "skipped: the cluster tier needs $1"
    exit 77
}

requirements() {
    local program
    [ "$(id -u)" -eq 0 ] || skip root
    for program in go apt-get dpkg curl flock ip nsenter openssl unshare; do
        command -v "$program" >/dev/null || skip "$program"
    done
    [ -d /sys/fs/cgroup/memory ] || skip "cgroup v1"
    unshare --net --mount --pid --uts --ipc --fork true 2>/dev/null || skip "the right to make namespaces"
}

apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5)
# thrice <command...>: what downloads, and may do better later.
thrice() { "$@" || { sleep 5; "$@"; } || { sleep 30; "$@"; }; }

# is_up <name>
is_up() {
    [ -e "$clusters/$1/lock" ] && ! flock --shared --nonblock "$clusters/$1/lock" true
}

# The cluster that is meant: $TESK_CLUSTER_NAME, or the only one that is up.
the_cluster() {
    local name found=()
    if [ -n "${TESK_CLUSTER_NAME:-}" ]; then
        found=("$TESK_CLUSTER_NAME")
    else
        for name in "$clusters"/*/; do
            name=$(basename "$name")
            if is_up "$name"; then found+=("$name"); fi
        done
    fi
    if [ ${#found[@]} -ne 1 ] || ! is_up "${found[0]}"; then
        echo "error: no such cluster, or TESK_CLUSTER_NAME must say which; up: ${found[*]:-none}" >&2
        return 1
    fi
    echo "${found[0]}"
}

# inside <name> <command...>: in the namespaces of the node.
inside() {
    local pid
    pid=$(cat "$clusters/$1/pid")
    shift
    nsenter --target "$pid" --mount --net --pid --uts --ipc -- "$@"
}

ctr() { inside "$1" "$tools/root/usr/bin/ctr" --address /run/containerd/containerd.sock --namespace k8s.io "${@:2}"; }

# remove <name>: ends what runs of a cluster and removes what it leaves behind. May be repeated.
remove() {
    local state=$clusters/$1 pid
    # The number of a process that has ended is soon another's: only who holds the lock is ended.
    if is_up "$1" && pid=$(cat "$state/pid" 2>/dev/null); then
        kill -KILL "$pid" 2>/dev/null || true
    fi
    # The daemons hold the lock as well, so this waits for all of them.
    if [ -e "$state/lock" ] && ! flock --shared --timeout 120 "$state/lock" true; then
        echo "error: $1 does not end (process $(cat "$state/pid" 2>/dev/null || echo unknown))" >&2
        return 1
    fi
    # It goes with the namespace that holds its other end, but not at once.
    ip link delete "$1-h" 2>/dev/null || true
    for _ in $(seq 50); do
        find /sys/fs/cgroup/*/"$1" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        compgen -G "/sys/fs/cgroup/*/$1" >/dev/null || break
        sleep 0.1
    done
    rm -rf "$state"
}
