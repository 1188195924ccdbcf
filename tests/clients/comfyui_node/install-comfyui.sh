#!/usr/bin/env bash
# Makes a Python environment that runs a checkout of ComfyUI on a CPU, with the node pack:
#
#   tests/clients/comfyui_node/install-comfyui.sh CHECKOUT VENV
#
# torchvision, kornia and spandrel come without what they depend on, which would bring another
# torch. torchaudio is left out: ComfyUI starts without it, and only its audio nodes are missing.
set -euo pipefail
checkout=$(realpath "$1")
venv=$(realpath --canonicalize-missing "$2")
root=$(realpath "$(dirname "$0")/../../..")

[[ -f $checkout/main.py && -f $checkout/requirements.txt ]] ||
  { echo "$checkout is no checkout of ComfyUI" >&2; exit 1; }
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$root/constraints.txt")
minor=$(cut -d. -f2 <<<"$torch")
apart='torch|torchvision|torchaudio|kornia|spandrel'

[[ -x $venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$venv"
install=("$venv/bin/pip" install --quiet --disable-pip-version-check)
grep -vE "^($apart)([^a-z]|$)" "$checkout/requirements.txt" >"$venv/requirements.txt"
echo "torch==$torch" >"$venv/constraints.txt"
"${install[@]}" "torch==$torch"
# ComfyUI imports requests but does not name it.
"${install[@]}" -c "$venv/constraints.txt" -r "$venv/requirements.txt" requests -e "$root"
# torchvision 0.(n + 15) goes with torch 2.n.
"${install[@]}" --no-deps "torchvision==0.$((minor + 15)).*" kornia kornia_rs spandrel
