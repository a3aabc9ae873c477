/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about packets that were translated: they are translated back, outside and in what
 * they quote, so that the sender of the packet recognizes it. Path MTU discovery needs this.
 */
#pragma once

#include "wire_forward.h"

INLINE int is_icmp_error(const struct packet *packet, __u8 type)
{
    if (packet->v6) /* unreachable, too big, time exceeded, parameter problem (RFC 4443) */
        return packet->key.protocol == IPPROTO_ICMPV6 && type >= 1 && type <= 4;
    /* unreachable, time exceeded, parameter problem (RFC 792) */
    return packet->key.protocol == IPPROTO_ICMP && (type == 3 || type == 11 || type == 12);
}

/* Reads the packet that an ICMP error quotes: its IP header and ports, no more need be there. */
FUNCTION int read_quoted(struct __sk_buff *skb, const struct packet *packet, struct packet *quoted)
{
    if (!packet || !quoted)
        return 0;
    struct icmp_header icmp;
    __builtin_memset(quoted, 0, sizeof(*quoted));
    if (packet->is_fragment || bpf_skb_load_bytes(skb, packet->l4, &icmp, sizeof(icmp)) ||
        !is_icmp_error(packet, icmp.type))
        return 0;
    quoted->l3 = packet->l4 + sizeof(icmp);
    if (!(packet->v6 ? read_v6(skb, quoted) : read_v4(skb, quoted)))
        return 0;
    return is_tcp_or_udp(quoted) && !quoted->is_later_fragment && read_ports(skb, quoted);
}

/* Gives the quoted packet the addresses and ports of `to`. Its own transport checksum is left. */
FUNCTION int rewrite_quoted(struct __sk_buff *skb, const struct packet *packet,
                            const struct packet *quoted, const struct flow_key *to)
{
    if (!packet || !quoted || !to)
        return 0;
    __u32 icmp_checksum = packet->l4 + __builtin_offsetof(struct icmp_header, checksum);
    __u32 old, new;
    __builtin_memcpy(&old, &quoted->key.source_port, sizeof(old));
    __builtin_memcpy(&new, &to->source_port, sizeof(new));
    if (packet->v6) {
        struct address before[2] = {quoted->key.source, quoted->key.destination};
        struct address after[2] = {to->source, to->destination};
        __u32 at = quoted->l3 + __builtin_offsetof(struct ipv6_header, addresses);
        __s64 difference = bpf_csum_diff(before, sizeof(before), after, sizeof(after), 0);
        bpf_l4_csum_replace(skb, icmp_checksum, 0, difference, 0);
        bpf_skb_store_bytes(skb, at, after, sizeof(after), 0);
    } else {
        /* The quoted header's checksum makes up for its addresses. */
        rewrite_addresses(skb, quoted, to, 0, 0);
    }
    bpf_l4_csum_replace(skb, icmp_checksum, old, new, sizeof(new));
    bpf_skb_store_bytes(skb, quoted->l4, &new, sizeof(new), 0);
    return 0;
}

/*
 * Translates an ICMP error. What it quotes left here by the flow whose answers it resembles turned
 * around. On success `to` has the new addresses of the error itself.
 */
FUNCTION int translate_error(struct __sk_buff *skb, const struct packet *packet,
                             struct flow_key *to)
{
    if (!packet || !to)
        return 0;
    struct packet quoted;
    if (!read_quoted(skb, packet, &quoted))
        return 0;
    struct flow_key key = {
        .source = quoted.key.destination,
        .destination = quoted.key.source,
        .source_port = quoted.key.destination_port,
        .destination_port = quoted.key.source_port,
        .protocol = quoted.key.protocol,
    };
    struct flow *flow = bpf_map_lookup_elem(&flows, &key);
    if (!flow)
        return 0;
    to->source = packet->key.source;
    /* A target hides behind its frontend; a router on the way shows itself. */
    if (same_address(&packet->key.source, &key.source))
        to->source = flow->source;
    to->destination = flow->destination;
    key = answers_to(flow, quoted.key.protocol);
    rewrite_quoted(skb, packet, &quoted, &key);
    return 1;
}

/* Translates the addresses of an ICMP error itself. */
INLINE int rewrite_error(struct __sk_buff *skb, const struct packet *packet,
                         const struct flow_key *to)
{
    __u32 checksum = packet->l4 + __builtin_offsetof(struct icmp_header, checksum);
    return rewrite_addresses(skb, packet, to, packet->v6 ? checksum : 0, 0);
}

/* Sends on an ICMP error whose quoted packet was translated. */
FUNCTION int send_error_on(struct __sk_buff *skb, const struct packet *packet,
                           const struct flow_key *to)
{
    if (!packet || !to)
        return SHOT;
    struct route route;
    find_route(skb, packet, to, &route);
    rewrite_error(skb, packet, to);
    if (route.kind == TO_STACK)
        return NEXT;
    /* No errors about errors (RFC 1122, 3.2.2). */
    if (route.kind != AWAY || packet->hop_limit <= 1)
        return SHOT;
    return hand_over(skb, packet, &route);
}
