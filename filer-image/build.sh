#!/bin/sh
# Builds the static filer, and its image where buildah or podman is there.
#
#   filer-image/build.sh [image-name]      default: tesk-filer
#
# Prints the size of the binary and how long it takes to start; fails if it is not static.
set -eu
cd "$(dirname "$0")/.."

image=${1:-tesk-filer}
target="$(uname -m)-unknown-linux-musl"
if command -v rustup >/dev/null; then
    rustup target add "$target"
fi
# The C parts (ring) need no C library: without a musl compiler the machine's own will do.
if ! command -v musl-gcc >/dev/null; then
    export "CC_$(echo "$target" | tr - _)=${CC:-cc}"
fi
cargo build --locked --profile filer --target "$target" -p tesk-filer --bin filer

# What a filer must not know of is not in it.
unwanted='^(kube|k8s-openapi|axum|rusqlite|libsqlite3-sys) '
if cargo tree --locked -p tesk-filer -e normal,build --prefix none | grep -E "$unwanted"; then
    echo "build.sh: the filer must not depend on these" >&2
    exit 1
fi

directory="${CARGO_TARGET_DIR:-target}/$target/filer"
if LC_ALL=C grep -aq 'ld-linux\|ld-musl' "$directory/filer"; then
    echo "build.sh: the binary is not static" >&2
    exit 1
fi
starts=20
begin=$(date +%s%N)
for _ in $(seq $starts); do
    "$directory/filer" --version >/dev/null
done
end=$(date +%s%N)
echo "binary: $directory/filer"
size=$(($(wc -c <"$directory/filer") / 1024))
start=$(((end - begin) / starts / 1000))
echo "size: $size KiB"
echo "start-up: $start µs"
if [ "$size" -ge 12288 ] || [ "$start" -ge 10000 ]; then
    echo "build.sh: the filer is to be under 12 MiB and to start in under 10 ms" >&2
    exit 1
fi

for builder in buildah podman; do
    if command -v "$builder" >/dev/null; then
        context=$(mktemp -d)
        trap 'rm -r "$context"' EXIT
        cp "$directory/filer" "$context/filer"
        "$builder" build --tag "$image" --file filer-image/Containerfile "$context"
        echo "image: $image"
        exit 0
    fi
done
echo "image: none (neither buildah nor podman is there)"
