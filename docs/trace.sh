#!/bin/bash
# Prints the chains that the first packet of a TCP connection meets on the node of the running
# playground, and what each does with it. The kernel tells it, of a real packet.
#
# Usage: docs/trace.sh HOST ITS-ADDRESS DESTINATION PORT
set -eu
host=$1 source=$2 destination=$3 port=$4
node() { kpng playground shell node "$@"; }

node nft -f - <<END
table ip look
delete table ip look
table ip look {
    chain prerouting {
        type filter hook prerouting priority -200
        ip saddr $source ip daddr $destination tcp dport $port tcp flags == syn meta nftrace set 1
    }
}
END
trap 'node nft delete table ip look' EXIT
exec 3< <(node timeout 3 nft monitor trace)
sleep 0.5
kpng playground shell "$host" timeout 1 bash -c "cat < /dev/tcp/$destination/$port" >/dev/null 2>&1 || true
awk '$1 == "trace" && $5 == "kpng" && (!id || $3 == id) && / (rule|policy) / {
    id = $3
    what = $0
    if (!sub(/.*\(verdict /, "", what)) what = "policy accept"
    sub(/\)? *$/, "", what)
    if (what != "continue") printf "%-28s %s\n", $6, what # a rule that only counts goes on
}' <&3
