/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets, changed: addresses and ports are replaced, and checksums follow.
 *
 * Checksums are updated by the difference and never computed: what was wrong stays wrong, and what
 * the device is to fill in (CHECKSUM_PARTIAL) stays so. The kernel may also hold a sum of the whole
 * packet (CHECKSUM_COMPLETE). It stays right if IPv4 addresses are stored without
 * BPF_F_RECOMPUTE_CSUM, as the header's own checksum makes up for them, and IPv6 addresses with it.
 */
#pragma once

#include "wire_packet.h"

INLINE __u32 checksum_at(const struct packet *packet)
{
    return packet->l4 + (packet->key.protocol == IPPROTO_UDP ? 6 : 16);
}

/* `checksum`: where a checksum is that covers the addresses; 0 when there is none. */
FUNCTION int rewrite_addresses(struct __sk_buff *skb, const struct packet *packet,
                               const struct flow_key *to, __u32 checksum, __u64 flags)
{
    if (!packet || !to)
        return 0;
    __s64 difference;
    if (packet->v6) {
        struct address old[2] = {packet->key.source, packet->key.destination};
        struct address new[2] = {to->source, to->destination};
        __u32 at = packet->l3 + __builtin_offsetof(struct ipv6_header, addresses);
        difference = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
        bpf_skb_store_bytes(skb, at, new, sizeof(new), BPF_F_RECOMPUTE_CSUM);
    } else {
        __u32 old[2] = {packet->key.source.word[3], packet->key.destination.word[3]};
        __u32 new[2] = {to->source.word[3], to->destination.word[3]};
        __u32 at = packet->l3 + __builtin_offsetof(struct ipv4_header, addresses);
        __u32 own = packet->l3 + __builtin_offsetof(struct ipv4_header, checksum);
        difference = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
        bpf_l3_csum_replace(skb, own, 0, difference, 0);
        bpf_skb_store_bytes(skb, at, new, sizeof(new), 0);
    }
    if (checksum)
        bpf_l4_csum_replace(skb, checksum, 0, difference, BPF_F_PSEUDO_HDR | flags);
    return 0;
}

/* Gives a packet the addresses and ports of `to`. */
FUNCTION int rewrite(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *to)
{
    if (!packet || !to)
        return 0;
    if (packet->is_later_fragment)
        return rewrite_addresses(skb, packet, to, 0, 0);
    /* A UDP packet may have no checksum (0), and keeps none. */
    __u64 flags = packet->key.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
    __u32 checksum = checksum_at(packet);
    __u32 old, new;
    __builtin_memcpy(&old, &packet->key.source_port, sizeof(old));
    __builtin_memcpy(&new, &to->source_port, sizeof(new));
    rewrite_addresses(skb, packet, to, checksum, flags);
    if (old == new)
        return 0;
    bpf_l4_csum_replace(skb, checksum, old, new, flags | sizeof(new));
    bpf_skb_store_bytes(skb, packet->l4, &new, sizeof(new), 0);
    return 0;
}

/* Takes off one hop, as a router does. */
FUNCTION int pass_hop(struct __sk_buff *skb, const struct packet *packet)
{
    if (!packet)
        return 0;
    if (packet->v6) {
        __u8 hop_limit = packet->hop_limit - 1;
        __u32 at = packet->l3 + __builtin_offsetof(struct ipv6_header, hop_limit);
        bpf_skb_store_bytes(skb, at, &hop_limit, sizeof(hop_limit), BPF_F_RECOMPUTE_CSUM);
        return 0;
    }
    /* The checksum is of 16 bit words: the time to live shares one with the protocol. */
    __u32 at = packet->l3 + __builtin_offsetof(struct ipv4_header, ttl);
    __u32 checksum = packet->l3 + __builtin_offsetof(struct ipv4_header, checksum);
    __u16 old = htons(packet->hop_limit << 8 | packet->key.protocol);
    __u16 new = htons((packet->hop_limit - 1) << 8 | packet->key.protocol);
    bpf_l3_csum_replace(skb, checksum, old, new, sizeof(new));
    bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
    return 0;
}
