#!/usr/bin/env bash
# Builds the kernel modules that the guest of the IPVS tests needs and Debian's package
# user-mode-linux leaves out: nf_tables of IPv4 and IPv6 (its configuration has only that of bridges).
# They come from Debian's package of the same kernel's source, and go to .testbin/guest-modules/VERSION.
# It takes a minute and 1.6 GB of temporary space, once.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

version="$(ls /usr/lib/uml/modules | sort -V | tail -1)"
target="$PWD/.testbin/guest-modules/$version"
[ -e "$target/nf_tables.ko" ] && exit 0

series="${version%.*}"
source="linux-source-$series"
# The same version if it is still offered, else the newest: the series keeps its interfaces.
offered="$(apt-cache madison "$source" | awk '{print $3}')"
package="$(grep -m1 "^$version-" <<<"$offered" || head -1 <<<"$offered")"
if [ -z "$package" ]; then
    echo "apt offers no $source: the modules of the guest's kernel cannot be built" >&2
    exit 1
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get download -qq "$source=$package" 2>/dev/null)
dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -O "./usr/src/$source.tar.xz" | tar -xJ -C "$work"
cd "$work/$source"

zcat /usr/share/doc/user-mode-linux/config.gz >.config
for option in NF_TABLES_IPV4=y NF_TABLES_IPV6=y NFT_NAT=m NFT_FIB_IPV4=m NFT_FIB_IPV6=m; do
    sed -i "/CONFIG_${option%=*}[ =]/d" .config
    echo "CONFIG_$option" >>.config
done
# What differs is the level only, and modules of another one are not loaded.
sed -i "s/^SUBLEVEL = .*/SUBLEVEL = ${version##*.}/" Makefile
make -s ARCH=um olddefconfig >/dev/null
make -s ARCH=um modules_prepare >/dev/null
touch Module.symvers
modules=(net/netfilter/nf_tables.ko)
for family in 4 6; do
    modules+=(net/ipv$family/netfilter/nft_{fib,reject}_ipv$family.ko)
done
for name in chain_nat nat ct masq numgen hash reject fib; do
    modules+=("net/netfilter/nft_$name.ko")
done
# Symbols of the kernel itself are not known here; they are found when a module is loaded.
make -s -j"$(nproc)" ARCH=um KBUILD_MODPOST_WARN=1 "${modules[@]}" >"$work/log" 2>&1 || {
    tail -20 "$work/log" >&2
    exit 1
}
mkdir -p "$target"
cp "${modules[@]}" "$target"
