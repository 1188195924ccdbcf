#!/bin/sh
# Writes the locks from which the images are installed: every package with version and hashes.
# Needs uv (pip install uv) and PyPI. Run from anywhere; look at the diff before committing it.
set -eu
cd "$(dirname "$0")/../.."

compile() { # compile OUT EXTRA [option ...]
    out=deploy/docker/$1 extra=$2
    shift 2
    uv pip compile pyproject.toml --extra "$extra" --constraint constraints.txt --quiet \
        --generate-hashes --no-annotate --no-header \
        --python-version 3.11.14 --python-platform x86_64-manylinux_2_28 "$@" -o "$out"
    echo "$out: $(grep -c == "$out") packages"
}

# torch's CPU build is not on PyPI, and what the CUDA build needs is not for it.
without_torch=$(sed 's/^/--no-emit-package /' deploy/docker/cuda-packages.txt | tr '\n' ' ')

compile node.lock node
# shellcheck disable=SC2086
compile node-cpu.lock node $without_torch
# shellcheck disable=SC2086
compile coordinator.lock coordinator $without_torch --no-emit-package triton
