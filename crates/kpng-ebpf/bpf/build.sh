#!/bin/sh
# Compiles the programs into the object that the crate is built with: build.sh [OUTPUT]
#
# Debian 12's clang (14) and kernel headers make exactly the object that is kept; others may make
# another that is as good.
set -eu
cd "$(dirname "$0")"
headers="/usr/include/$(uname -m)-linux-gnu"
exec "${CLANG:-clang}" -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror \
    -fdebug-compilation-dir=. -I"$headers" -c kpng.bpf.c -o "${1:-kpng.bpf.o}"
