#!/usr/bin/env bash
# Passes all tests. First it installs what they need beyond Rust: Debian packages (as root); a
# kube-apiserver, which is built once from its Go module into .testbin/ (minutes), unless one is in
# KUBEBUILDER_ASSETS or PATH; and modules of the guest's kernel, built once from Debian's source (a
# minute). What the example clients in Go and Python need is downloaded by their tests. Arguments go
# to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin:/usr/sbin:/sbin"

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need nft nftables
need ip iproute2
need ethtool ethtool
need iptables iptables
need ipset ipset
need conntrack conntrack
need clang clang
need etcd etcd-server
need openssl openssl
need curl curl
need tcpdump tcpdump
need linux.uml user-mode-linux
need ipvsadm ipvsadm
need make make
need flex flex
need bison bison
need bc bc
need xz xz-utils
need chromium chromium
need go golang-go
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "The tests need packages that are missing. Install them as root: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# Debian's Go may be older than Kubernetes and the example want; the toolchain is a Go module like
# any other.
go_minor() { go env GOVERSION | sed 's/^go1\.\([0-9]*\).*/\1/'; }
if [ "$(go_minor)" -lt 24 ]; then
    toolchain="golang.org/toolchain@v0.0.1-go1.26.0.linux-$(go env GOARCH)"
    folder="$(cd "$(mktemp -d)" && go mod download -json "$toolchain" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')"
    chmod -R u+wx "$folder/bin" "$folder/pkg/tool"
    export PATH="$folder/bin:$PATH"
fi

hack/guest-modules.sh
cargo run --quiet --package kpng-testkit --example fetch_apiserver
exec cargo test --workspace "$@"
