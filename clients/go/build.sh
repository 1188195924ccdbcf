#!/bin/sh
# Builds build/prompt_to_png with Debian's packages, without a module proxy.
set -eu
cd "$(dirname "$0")"
mkdir -p build/src
export GO111MODULE=off GOPATH="$PWD/build:/usr/share/gocode" PATH="$PWD/build/bin:$PATH"
# Debian's own protoc-gen-go does not know optional fields; the library's does.
go build -o build/bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
protoc -I ../../proto --go_out=build/src --go-grpc_out=build/src \
  ditmesh/v1/job.proto ditmesh/v1/pipeline.proto ditmesh/v1/sampler.proto ditmesh/v1/tensor.proto
go build -o build/prompt_to_png .
