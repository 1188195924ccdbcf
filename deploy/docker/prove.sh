#!/bin/bash
# Builds the images from the Dockerfile and runs them the way the cluster does, where there is
# neither a container engine nor an image registry.
#
#   deploy/docker/prove.sh [TARGET ...]        (default: coordinator node-cpu together)
#
# `together` is no image: it runs the two that were built, as a cluster.
#
# What is real: every instruction of the Dockerfile (buildah, chroot isolation), the locks and
# their hashes, the finished file systems. What stands in for something: the base image, which
# is a fresh Debian bookworm with this machine's Python 3.11 under /usr/local, the layout of
# python:3.11-slim-bookworm. Each image is then run with a read-only root, as user 10001, without
# capabilities, as process 1 of its own PID namespace, /tmp and /dev/shm in memory: see run.sh.
#
# Needs root, Debian's mmdebstrap, buildah and util-linux, and the package registries.
# Everything is kept in $PROOF (default /var/tmp/ditmesh-proof): images/<target> is a root.
set -euo pipefail
cd "$(dirname "$0")/../.."
proof=${PROOF:-/var/tmp/ditmesh-proof}
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(coordinator node-cpu together)
dockerfile=deploy/docker/Dockerfile
mkdir -p "$proof/images"
export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay} BUILDAH_ISOLATION=chroot TMPDIR=$proof
store=(--root "$proof/store" --runroot "$proof/run")

say() { echo "== $*"; }

base_image() { # the stand-in, under the very name that the Dockerfile asks for
    local name root python
    name=$(sed -n 's/^ARG PYTHON_IMAGE=//p' $dockerfile)
    buildah "${store[@]}" inspect "$name" >/dev/null 2>&1 && return
    say "base: Debian bookworm and Python 3.11, as $name"
    root=$proof/base
    rm -rf "$root"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,zlib1g,libreadline8,libncursesw6,libuuid1,libexpat1 \
        bookworm "$root" >/dev/null
    python=$(python3.11 -c 'import sys; print(sys.base_prefix)')
    cp -a "$python/bin/python3.11" "$root/usr/local/bin/"
    ln -s python3.11 "$root/usr/local/bin/python3"
    cp -a "$python"/lib/libpython3* "$root/usr/local/lib/"
    mkdir "$root/usr/local/lib/python3.11"
    tar -C "$python/lib/python3.11" --exclude=site-packages --exclude=test --exclude=__pycache__ \
        -cf - . | tar -C "$root/usr/local/lib/python3.11" -xf -
    mkdir "$root/usr/local/lib/python3.11/site-packages"
    chroot "$root" ldconfig
    # This machine's way to the registries: its certificates.
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    touch "$root/etc/pip.conf"
    local container
    container=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" copy --quiet "$container" "$root" /
    buildah "${store[@]}" config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah "${store[@]}" commit --quiet "$container" "$name"
    buildah "${store[@]}" rm "$container" >/dev/null
    rm -rf "$root"
}

torch_index() { # a simple index with the one CPU wheel that this machine's pip can find
    local index=$proof/torch-index/torch
    [ -e "$index/index.html" ] && return
    mkdir -p "$index"
    python3.11 -m pip download --quiet --no-deps --dest "$index" "$(sed -n 's/^ARG TORCH_CPU=//p' $dockerfile)"
    (cd "$index" && for file in *.whl; do echo "<a href=\"${file//+/%2B}\">$file</a>"; done >index.html)
}

build() { # build TARGET: from the Dockerfile as it is to a root under images/
    local target=$1 container mounted
    say "build: $target"
    # Wheels may be fetched beforehand: pip download -r deploy/docker/node.lock -d $PROOF/wheels
    mkdir -p "$proof/wheels"
    printf '[global]\ncert = %s\ntimeout = 180\nfind-links = /wheels\n' \
        /etc/ssl/certs/ca-certificates.crt >"$proof/pip.conf"
    buildah "${store[@]}" bud --pull-never --layers --quiet --network host \
        --volume "$proof/torch-index:/torch-index:ro" --volume "$proof/wheels:/wheels:ro" \
        --volume "$proof/pip.conf:/etc/pip.conf:ro" \
        --build-arg TORCH_CPU_INDEX=file:///torch-index \
        --ignorefile $dockerfile.dockerignore -f $dockerfile --target "$target" \
        -t "localhost/ditmesh-$target" . >/dev/null
    container=$(buildah "${store[@]}" from --pull-never "localhost/ditmesh-$target")
    mounted=$(buildah "${store[@]}" mount "$container")
    rm -rf "$proof/images/$target"
    cp -a "$mounted" "$proof/images/$target"
    buildah "${store[@]}" inspect --type image "localhost/ditmesh-$target" >"$proof/images/$target.json"
    buildah "${store[@]}" rm "$container" >/dev/null
    say "built: $target, $(du -sh "$proof/images/$target" | cut -f1) unpacked"
}

try() { # try TARGET: what must hold of every image
    local target=$1 run=deploy/docker/run.sh root=$proof/images/$1
    say "try: $target"
    python3.11 - "$proof/images/$target.json" <<'PY'
import json, sys
config = json.load(open(sys.argv[1]))["OCIv1"]["config"]
assert config["User"] == "10001:10001", config["User"]
assert config["StopSignal"] == "SIGTERM", config
assert config["Entrypoint"][:2] == ["python", "-m"], config["Entrypoint"]
PY
    [ "$($run "$root" id -u)" = 10001 ] || { echo "not the user 10001"; exit 1; }
    ! $run "$root" sh -c 'touch /opt/ditmesh/x' 2>/dev/null || { echo "the root is writable"; exit 1; }
    [ -z "$(find "$root" -xdev -perm /6000 -type f -newer "$root/etc/debian_version" -path '*opt*')" ] \
        || { echo "set-id files"; exit 1; }
    case $target in
    coordinator)
        $run "$root" python -m coordinator --help >/dev/null
        ! $run "$root" python -c 'import xfuser' 2>/dev/null || { echo "xfuser is in it"; exit 1; }
        ;;
    *) $run "$root" python -m gpu_node --help >/dev/null ;;
    esac
    $run "$root" python -m pip check || exit 1
    say "holds: $target"
}

child() { # child PID: process 1 of the container that run.sh with that process id started
    pgrep -P "$1"
}

together() { # a cluster of the two images: a picture from a prompt, every step on the group
    local run=deploy/docker/run.sh images=$proof/images nodes coordinator pid code
    say "together: two ranks, a coordinator, a picture"
    # Readable for the user 10001, whatever the checkout's umask was.
    rm -rf "$proof/models" && cp -rL models "$proof/models" && chmod -R a+rX "$proof/models"
    MODELS=$proof/models $run "$images/node-cpu" python -m gpu_node --models=/models --ranks=2 \
        --device=cpu --port=51061 --health=127.0.0.1:51159 --grace=60 >"$proof/node.log" 2>&1 &
    nodes=$!
    MODELS=$proof/models $run "$images/coordinator" python -m coordinator --listen=127.0.0.1:51050 \
        --nodes=127.0.0.1:51061-51062 --local-models=/models --preload=pixel-portraits \
        --settle=600 --regroup-wait=600 --journal=/tmp/journal.db --health=127.0.0.1:51158 \
        --prometheus=127.0.0.1:51464 --grace=60 >"$proof/coordinator.log" 2>&1 &
    coordinator=$!
    trap 'kill -KILL $(child $nodes) $(child $coordinator) 2>/dev/null || true' EXIT
    for _ in $(seq 300); do
        ! $run "$images/coordinator" ditmesh status --json --address 127.0.0.1:51050 2>/dev/null \
            | tee "$proof/status.txt" | grep -q 'ulysses=2' || break
        sleep 2
    done
    $run "$images/coordinator" ditmesh sample --address 127.0.0.1:51050 --model pixel-portraits \
        --prompt "a girl with long red hair" --size 128x128 --steps 8 --fallback forbid \
        --out /tmp/picture.png
    for pid in $nodes $coordinator; do
        kill -TERM "$(child "$pid")"
        code=0
        wait "$pid" || code=$?
        [ "$code" -eq 0 ] || { echo "process 1 ended with code $code"; exit 1; }
    done
    trap - EXIT
    say "holds: a picture, and both ended in order as process 1"
}

for target in "${targets[@]}"; do
    [ "$target" != together ] || { together; continue; }
    base_image
    torch_index
    build "$target"
    try "$target"
done
