#!/usr/bin/env bash
# Makes localv1/ and globalv1/ from the proto files, here or in the folder that is given. Needs Go,
# and either protoc or Python's grpcio-tools; the versions of the plugins are those in go.mod.
set -euo pipefail
cd "$(dirname "$0")"
out="${1:-.}"
module="$(go list -m)"

if command -v protoc >/dev/null; then
    protoc=(protoc)
else
    protoc=("${PYTHON:-python3}" -m grpc_tools.protoc)
fi
plugins="$(mktemp -d)"
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/" \
    google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc

options="paths=source_relative"
for package in localv1 globalv1; do
    options+=",M$package/api.proto=$module/$package"
done
PATH="$plugins:$PATH" "${protoc[@]}" -I ../../proto \
    --go_out="$options:$out" --go-grpc_out="$options:$out" localv1/api.proto globalv1/api.proto

# Which protoc it was makes no difference, so it is not told.
sed -i -E '/^\/\/ (-|\t)\s*protoc\s+(v|\(unknown\))/d' "$out"/{localv1,globalv1}/*.pb.go
