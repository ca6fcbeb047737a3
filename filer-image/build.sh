#!/bin/sh
# Builds the static filer and its image: an archive for `docker load`, `podman load` and
# `ctr images import`, made without any of them; and the image in buildah's, podman's or docker's
# own storage, where one of these is there.
#
#   filer-image/build.sh [--image NAME:TAG] [amd64|arm64]...
#
# The image is tesk-filer:VERSION and the architecture this machine's unless they are given.
# Another architecture needs rustup and, for the C parts, its gcc (Debian: gcc-aarch64-linux-gnu
# libc6-dev-arm64-cross); where that is absent, one line says that it was skipped.
#
# Prints the size of the binary and how long it takes to start; fails if it is not static, or if
# the image is larger than 15 MB.
set -eu
cd "$(dirname "$0")/.."

image=tesk-filer:$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [ "${1:-}" = --image ]; then
    image=$2
    shift 2
fi
machine=$(uname -m)
case $machine in
x86_64) native=amd64 ;;
aarch64) native=arm64 ;;
*) echo "build.sh: no image for $machine" >&2; exit 1 ;;
esac
[ $# -gt 0 ] || set -- "$native"

# What a filer must not know of is not in it.
unwanted='^(kube|k8s-openapi|axum|rusqlite|libsqlite3-sys) '
if cargo tree --locked -p tesk-filer -e normal,build --prefix none | grep -E "$unwanted"; then
    echo "build.sh: the filer must not depend on these" >&2
    exit 1
fi

out=${CARGO_TARGET_DIR:-target}/filer-image
mkdir -p "$out"
context=$(mktemp -d)
trap 'rm -r "$context"' EXIT

build() {
    architecture=$1
    case $architecture in
    amd64) cpu=x86_64 ;;
    arm64) cpu=aarch64 ;;
    *) echo "build.sh: no such architecture: $architecture" >&2; exit 2 ;;
    esac
    target=$cpu-unknown-linux-musl
    # The C parts (ring) need no C library: without a musl compiler a GNU one will do.
    name=$(echo "$target" | tr - _)
    if [ "$architecture" = "$native" ]; then
        command -v musl-gcc >/dev/null || export "CC_$name=${CC:-cc}"
    elif ! command -v rustup >/dev/null || ! command -v "$cpu-linux-gnu-gcc" >/dev/null; then
        echo "skipped: the filer for $architecture needs rustup and $cpu-linux-gnu-gcc"
        return
    else
        export "CC_$name=$cpu-linux-gnu-gcc"
        # Rust brings the linker and the C library.
        export "CARGO_TARGET_$(echo "$name" | tr '[:lower:]' '[:upper:]')_RUSTFLAGS=-Clinker=rust-lld -Clink-self-contained=yes"
    fi
    if command -v rustup >/dev/null; then
        rustup target add "$target"
    fi
    cargo build --locked --profile filer --target "$target" -p tesk-filer --bin filer

    binary=${CARGO_TARGET_DIR:-target}/$target/filer/filer
    if LC_ALL=C grep -aq 'ld-linux\|ld-musl' "$binary"; then
        echo "build.sh: the binary is not static" >&2
        exit 1
    fi
    echo "binary: $binary"
    size=$(($(wc -c <"$binary") / 1024))
    echo "size: $size KiB"
    if [ "$size" -ge 12288 ]; then
        echo "build.sh: the filer is to be under 12 MiB" >&2
        exit 1
    fi
    if [ "$architecture" = "$native" ]; then
        starts=20
        begin=$(date +%s%N)
        for _ in $(seq $starts); do
            "$binary" --version >/dev/null
        done
        start=$((($(date +%s%N) - begin) / starts / 1000))
        echo "start-up: $start µs"
        if [ "$start" -ge 10000 ]; then
            echo "build.sh: the filer is to start in under 10 ms" >&2
            exit 1
        fi
    fi

    rm -rf "$context/root"
    mkdir "$context/root"
    install -m 755 "$binary" "$context/root/filer"
    archive=$out/tesk-filer-$architecture.tar
    filer-image/make-image "$image" "$context/root" "$archive" \
        '{"User":"65532:65532","Entrypoint":["/filer"]}' "$architecture"
    # Unpacked, as a node keeps it.
    if [ "$(wc -c <"$context/root/filer")" -gt 15000000 ] || [ "$(wc -c <"$archive")" -gt 15000000 ]; then
        echo "build.sh: the image is to be at most 15 MB" >&2
        exit 1
    fi
    echo "image: $image for $architecture in $archive ($(($(wc -c <"$archive") / 1024)) KiB)"

    [ "$architecture" = "$native" ] || return 0
    for builder in buildah podman docker; do
        if command -v "$builder" >/dev/null; then
            "$builder" build --tag "$image" --file filer-image/Containerfile "$context/root"
            echo "image: $image in the storage of $builder"
            return
        fi
    done
}

for architecture; do build "$architecture"; done
