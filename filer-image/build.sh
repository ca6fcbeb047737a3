#!/bin/sh
# Builds a static program and its image: an archive for `docker load`, `podman load` and
# `ctr images import`, made without any of them; and the image in podman's, docker's or buildah's
# own storage, where one of these is there.
#
#   filer-image/build.sh [--image NAME:TAG] [filer|server] [amd64|arm64]...
#   filer-image/build.sh --image NAME:TAG --binary FILE [filer|server] [amd64|arm64]
#
# `filer` (unless `server` is said) is what runs in the pods of tasks; `server` is `tesk` with all
# that a cluster's server needs, and no other engine. The image is tesk-filer:VERSION or
# tesk:VERSION, and the architecture this machine's, unless they are given. Another architecture
# needs rustup and, for the C parts, its gcc (Debian: gcc-aarch64-linux-gnu
# libc6-dev-arm64-cross); where that is absent, one line says that it was skipped.
#
# With --binary nothing is built: FILE is a program that you have built for this architecture, such
# as a filer with storage plugins of your own. Its archive is named after its image.
#
# Prints the size of the binary and how long it takes to start; fails if it is not static, or, of
# what is built here, if the image is larger than 15 MB (filer) or 30 MB (server).
set -eu
here=$PWD
cd "$(dirname "$0")/.."

image='' given=''
while :; do
    case "${1:-}" in
    --image) image=$2 ;;
    --binary)
        case $2 in
        /*) given=$2 ;;
        *) given=$here/$2 ;;
        esac
        ;;
    *) break ;;
    esac
    shift 2
done
program=filer
case "${1:-}" in
filer | server)
    program=$1
    shift
    ;;
esac
case $program in
filer)
    package=tesk-filer binary=filer profile=filer name=tesk-filer
    # What it must not know of is not in it.
    unwanted='kube|k8s-openapi|axum|rusqlite|libsqlite3-sys'
    largest=15000000 slowest=10000
    config='{"User":"65532:65532","Entrypoint":["/filer"]}'
    ;;
server)
    package=tesk-api binary=tesk profile=release name=tesk
    unwanted='rusqlite|libsqlite3-sys|nix'
    largest=30000000 slowest=20000
    config='{"User":"65532:65532","Entrypoint":["/tesk"]}'
    ;;
esac
# The filer has no features to leave out.
features() { [ "$program" = filer ] || echo --no-default-features; }

if [ -n "$given" ]; then
    if [ -z "$image" ] || [ $# -gt 1 ]; then
        echo "build.sh: --binary needs --image, and is of one architecture" >&2
        exit 2
    fi
    if ! [ -x "$given" ]; then
        echo "build.sh: no such program: $given" >&2
        exit 2
    fi
    # Not in the place of the archive of what is built here.
    name=${image##*/}
    name=${name%%[:@]*}
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
image=${image:-$name:$version}
machine=$(uname -m)
case $machine in
x86_64) native=amd64 ;;
aarch64) native=arm64 ;;
*) echo "build.sh: no image for $machine" >&2; exit 1 ;;
esac
[ $# -gt 0 ] || set -- "$native"

# shellcheck disable=SC2046 # none or one word
if [ -z "$given" ] && cargo tree --locked -p "$package" $(features) -e normal,build --prefix none | grep -E "^($unwanted) "; then
    echo "build.sh: the $program must not depend on these" >&2
    exit 1
fi

out=${CARGO_TARGET_DIR:-target}/filer-image
mkdir -p "$out"
context=$(mktemp -d)
trap 'rm -r "$context"' EXIT

# compile: sets `built`, unless this machine cannot build for the architecture.
compile() {
    target=$cpu-unknown-linux-musl
    # The C parts (ring) need no C library: without a musl compiler a GNU one will do.
    variable=$(echo "$target" | tr - _)
    if [ "$architecture" = "$native" ]; then
        command -v musl-gcc >/dev/null || export "CC_$variable=${CC:-cc}"
    elif ! command -v rustup >/dev/null || ! command -v "$cpu-linux-gnu-gcc" >/dev/null; then
        echo "skipped: the $program for $architecture needs rustup and $cpu-linux-gnu-gcc"
        return 0
    else
        export "CC_$variable=$cpu-linux-gnu-gcc"
        # Rust brings the linker and the C library.
        export "CARGO_TARGET_$(echo "$variable" | tr '[:lower:]' '[:upper:]')_RUSTFLAGS=-Clinker=rust-lld -Clink-self-contained=yes"
    fi
    if command -v rustup >/dev/null; then
        rustup target add "$target"
    fi
    # shellcheck disable=SC2046
    cargo build --locked --profile "$profile" --target "$target" -p "$package" --bin "$binary" $(features)

    built=${CARGO_TARGET_DIR:-target}/$target/$profile/$binary
}

build() {
    architecture=$1
    case $architecture in
    amd64) cpu=x86_64 ;;
    arm64) cpu=aarch64 ;;
    *) echo "build.sh: no such architecture: $architecture" >&2; exit 2 ;;
    esac
    built=$given
    if [ -z "$built" ]; then compile; fi
    [ -n "$built" ] || return 0

    if LC_ALL=C grep -aq 'ld-linux\|ld-musl' "$built"; then
        echo "build.sh: the binary is not static" >&2
        exit 1
    fi
    echo "binary: $built"
    echo "size: $(($(wc -c <"$built") / 1024)) KiB"
    if [ "$architecture" = "$native" ]; then
        # The quickest: the others tell more of what else the machine does.
        start=
        for _ in $(seq 20); do
            begin=$(date +%s%N)
            "$built" --version >/dev/null
            took=$((($(date +%s%N) - begin) / 1000))
            if [ -z "$start" ] || [ "$took" -lt "$start" ]; then start=$took; fi
        done
        echo "start-up: $start µs"
        if [ -z "$given" ] && [ "$start" -ge "$slowest" ]; then
            echo "build.sh: the $program is to start in under $((slowest / 1000)) ms" >&2
            [ "$start" -lt $((slowest * 5)) ] || exit 1
        fi
    fi

    rm -rf "$context/root"
    mkdir "$context/root"
    install -m 755 "$built" "$context/root/$binary"
    archive=$out/$name-$architecture.tar
    filer-image/make-image "$image" "$context/root" "$archive" "$config" "$architecture"
    # Unpacked, as a node keeps it.
    if [ -z "$given" ] &&
        { [ "$(wc -c <"$built")" -gt "$largest" ] || [ "$(wc -c <"$archive")" -gt "$largest" ]; }; then
        echo "build.sh: the image is to be at most $((largest / 1000000)) MB" >&2
        exit 1
    fi
    echo "image: $image for $architecture in $archive ($(($(wc -c <"$archive") / 1024)) KiB)"

    [ "$architecture" = "$native" ] || return 0
    if command -v podman >/dev/null; then
        podman load --quiet --input "$archive"
    # Its command may be there without it.
    elif docker info >/dev/null 2>&1; then
        docker load --quiet --input "$archive"
    elif command -v buildah >/dev/null; then
        buildah pull --quiet "docker-archive:$archive"
    fi
}

for architecture; do build "$architecture"; done
