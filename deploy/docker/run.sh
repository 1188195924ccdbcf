#!/bin/bash
# Runs a command in an unpacked image as the cluster would: process 1, read-only root, user 10001,
# no capabilities, no new privileges, /tmp and /dev/shm in memory.
#
#   [MODELS=DIR] [BIND=DIR:PLACE] run.sh ROOT COMMAND [ARGUMENT ...]
#
# MODELS is bound read-only at /models, BIND read-only at PLACE (an empty folder of the image).
# The network is this machine's. Needs root.
set -euo pipefail
root=$(realpath "$1")
shift
export ROOT=$root MODELS=${MODELS:-} BIND=${BIND:-}
# shellcheck disable=SC2016
exec unshare --mount --pid --fork --kill-child=SIGTERM bash -c '
set -euo pipefail
mount --make-rprivate /
mkdir -p "$ROOT/models"
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o size=64m,mode=755 tmpfs "$ROOT/dev"
for device in null zero full random urandom; do
    touch "$ROOT/dev/$device" && mount --bind "/dev/$device" "$ROOT/dev/$device"
done
mkdir "$ROOT/dev/shm" && ln -s /proc/self/fd "$ROOT/dev/fd"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$ROOT/dev/shm"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$ROOT/tmp"
[ -z "$MODELS" ] || { mount --bind "$MODELS" "$ROOT/models"; mount -o remount,ro,bind "$ROOT/models"; }
[ -z "$BIND" ] || { mount --bind "${BIND%%:*}" "$ROOT/${BIND#*:}"; mount -o remount,ro,bind "$ROOT/${BIND#*:}"; }
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf" 2>/dev/null || true
mount -o remount,ro,bind "$ROOT"
exec chroot "$ROOT" /usr/bin/env -i PATH=/opt/ditmesh/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp \
    HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all -- "$@"
' run "$@"
