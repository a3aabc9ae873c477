/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet's addresses and ports, and how they are rewritten. Ethernet only.
 */
#pragma once

#include "flow.h"

#define IP_OFFSET ETH_HLEN
#define IP4_CHECKSUM (IP_OFFSET + 10)

struct ip4 {
    __u8 version_length;
    __u8 tos;
    __u16 total;
    __u16 id;
    __u16 fragment;
    __u8 ttl;
    __u8 protocol;
    __u16 checksum;
    __u32 source;
    __u32 destination;
};

struct ip6 {
    __u32 version_class_flow;
    __u16 payload;
    __u8 next;
    __u8 hops;
    struct address source;
    struct address destination;
};

struct packet {
    struct flow_key key;
    __u32 l4; /* offset of the transport header */
    __u32 total; /* length of the IP packet as its header has it */
    __u8 v4;
    __u8 tcp_flags;
    __u8 ttl;
    __u8 tos;
    __u16 ttl_word; /* TTL and protocol, as IPv4's checksum covers them */
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

INLINE int parse_v4(struct __sk_buff *skb, struct packet *p)
{
    struct ip4 ip;
    if (bpf_skb_load_bytes(skb, IP_OFFSET, &ip, sizeof(ip)))
        return 0;
    if (ip.fragment & htons(0x1fff))
        return 0; /* has no ports */
    p->v4 = 1;
    p->l4 = IP_OFFSET + (ip.version_length & 15) * 4;
    p->total = ntohs(ip.total);
    p->ttl = ip.ttl;
    p->tos = ip.tos;
    __builtin_memcpy(&p->ttl_word, &ip.ttl, 2);
    p->key.protocol = ip.protocol;
    p->key.source = from_v4(ip.source);
    p->key.destination = from_v4(ip.destination);
    return 1;
}

INLINE int parse_v6(struct __sk_buff *skb, struct packet *p)
{
    struct ip6 ip;
    if (bpf_skb_load_bytes(skb, IP_OFFSET, &ip, sizeof(ip)))
        return 0;
    p->l4 = IP_OFFSET + sizeof(ip);
    p->total = ntohs(ip.payload) + sizeof(ip);
    p->ttl = ip.hops;
    p->key.protocol = ip.next;
    p->key.source = ip.source;
    p->key.destination = ip.destination;
    return 1;
}

/* Fails for what has no ports: other protocols, later fragments, IPv6 extension headers. */
INLINE int parse(struct __sk_buff *skb, struct packet *p)
{
    if (skb->protocol == htons(ETH_P_IP)) {
        if (!parse_v4(skb, p))
            return 0;
    } else if (skb->protocol == htons(ETH_P_IPV6)) {
        if (!parse_v6(skb, p))
            return 0;
    } else {
        return 0;
    }
    if (p->key.protocol != IPPROTO_TCP && p->key.protocol != IPPROTO_UDP)
        return 1;
    __u16 ports[2];
    if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
        return 0;
    p->key.source_port = ports[0];
    p->key.destination_port = ports[1];
    if (p->key.protocol == IPPROTO_TCP && bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp_flags, 1))
        return 0;
    return 1;
}

INLINE int has_ports(const struct packet *p)
{
    return p->key.protocol == IPPROTO_TCP || p->key.protocol == IPPROTO_UDP;
}

INLINE void rewrite_port(struct __sk_buff *skb, __u32 at, __u32 checksum, __u64 flags, __u16 from,
                         __u16 to)
{
    if (from == to)
        return;
    bpf_l4_csum_replace(skb, checksum, from, to, flags | 2);
    bpf_skb_store_bytes(skb, at, &to, 2, 0);
}

INLINE void rewrite_v4(struct __sk_buff *skb, __u32 at, __u32 checksum, __u64 flags, __u32 from,
                       __u32 to)
{
    if (from == to)
        return;
    bpf_l4_csum_replace(skb, checksum, from, to, flags | BPF_F_PSEUDO_HDR | 4);
    bpf_l3_csum_replace(skb, IP4_CHECKSUM, from, to, 4);
    bpf_skb_store_bytes(skb, at, &to, 4, 0);
}

INLINE void rewrite_v6(struct __sk_buff *skb, __u32 at, __u32 checksum, __u64 flags,
                       const struct address *from, const struct address *to)
{
    if (same_address(from, to))
        return;
    struct address old = *from, new = *to;
    __s64 difference = bpf_csum_diff(&old, sizeof(old), &new, sizeof(new), 0);
    bpf_l4_csum_replace(skb, checksum, 0, difference, flags | BPF_F_PSEUDO_HDR);
    bpf_skb_store_bytes(skb, at, &new, sizeof(new), 0);
}

/* Gives a packet the addresses and ports of `flow`. */
INLINE void rewrite(struct __sk_buff *skb, const struct packet *p, const struct flow *flow)
{
    __u64 flags = p->key.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
    __u32 checksum = p->l4 + (p->key.protocol == IPPROTO_UDP ? 6 : 16);
    rewrite_port(skb, p->l4, checksum, flags, p->key.source_port, flow->source_port);
    rewrite_port(skb, p->l4 + 2, checksum, flags, p->key.destination_port, flow->destination_port);
    if (p->v4) {
        rewrite_v4(skb, IP_OFFSET + 12, checksum, flags, p->key.source.word[3],
                   flow->source.word[3]);
        rewrite_v4(skb, IP_OFFSET + 16, checksum, flags, p->key.destination.word[3],
                   flow->destination.word[3]);
    } else {
        rewrite_v6(skb, IP_OFFSET + 8, checksum, flags, &p->key.source, &flow->source);
        rewrite_v6(skb, IP_OFFSET + 24, checksum, flags, &p->key.destination, &flow->destination);
    }
}

/* One hop less to go. */
INLINE void age(struct __sk_buff *skb, const struct packet *p)
{
    __u8 ttl = p->ttl - 1;
    if (p->v4) {
        __u16 word = p->ttl_word;
        ((__u8 *)&word)[0] = ttl;
        bpf_l3_csum_replace(skb, IP4_CHECKSUM, p->ttl_word, word, 2);
        bpf_skb_store_bytes(skb, IP_OFFSET + 8, &ttl, 1, 0);
    } else {
        bpf_skb_store_bytes(skb, IP_OFFSET + 7, &ttl, 1, 0);
    }
}
