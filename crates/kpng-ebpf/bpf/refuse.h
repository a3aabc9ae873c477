/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers to packets that are refused, or too large: a TCP reset, or an ICMP error that quotes the
 * packet. The packet itself is turned into the answer, and leaves through the device it came by.
 */
#pragma once

#include "parse.h"

#define ICMP_UNREACHABLE 3
#define ICMP_PORT 3
#define ICMP_TOO_BIG 4 /* code of unreachable */
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TOO_BIG 2
#define ICMPV6_PORT 4
#define QUOTE4 28 /* bytes of the packet that an error has: IP header without options, ports */
#define QUOTE6 56

struct tcp {
    __u16 source;
    __u16 destination;
    __u32 sequence;
    __u32 acknowledged;
    __u8 offset;
    __u8 flags;
    __u16 window;
    __u16 checksum;
    __u16 urgent;
};

struct icmp {
    __u8 type;
    __u8 code;
    __u16 checksum;
    __u32 mtu;
};

/* What a checksum of upper layers covers of the IP header. */
struct pseudo {
    struct address source;
    struct address destination;
    __u32 length;
    __u32 protocol;
};

INLINE __u16 fold(__s64 sum)
{
    __u64 s = (__u32)sum;
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    return ~s;
}

/* The sum of the pseudo header of the answer. */
INLINE __u32 pseudo_sum(const struct packet *p, __u32 length, __u8 protocol)
{
    struct pseudo pseudo = {
        .source = p->key.destination,
        .destination = p->key.source,
        .length = htonl(length),
        .protocol = htonl(protocol),
    };
    if (p->v4) /* only the last words are in IPv4's pseudo header */
        pseudo.source.word[2] = pseudo.destination.word[2] = 0;
    return bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0);
}

INLINE void swap_ethernet(struct __sk_buff *skb)
{
    __u8 from[12], to[12];
    if (bpf_skb_load_bytes(skb, 0, from, sizeof(from)))
        return;
    __builtin_memcpy(to, from + 6, 6);
    __builtin_memcpy(to + 6, from, 6);
    bpf_skb_store_bytes(skb, 0, to, sizeof(to), 0);
}

/* Writes the IP header of an answer from `source`, with `length` bytes behind it. */
INLINE void write_ip(struct __sk_buff *skb, const struct packet *p, __u8 protocol, __u32 length)
{
    if (p->v4) {
        struct ip4 ip = {
            .version_length = 0x45,
            .total = htons(sizeof(ip) + length),
            .fragment = htons(0x4000),
            .ttl = 64,
            .protocol = protocol,
            .source = p->key.destination.word[3],
            .destination = p->key.source.word[3],
        };
        ip.checksum = fold(bpf_csum_diff(0, 0, (void *)&ip, sizeof(ip), 0));
        bpf_skb_store_bytes(skb, IP_OFFSET, &ip, sizeof(ip), 0);
        return;
    }
    struct ip6 ip = {
        .version_class_flow = htonl(6u << 28),
        .payload = htons(length),
        .next = protocol,
        .hops = 64,
        .source = p->key.destination,
        .destination = p->key.source,
    };
    bpf_skb_store_bytes(skb, IP_OFFSET, &ip, sizeof(ip), 0);
}

INLINE int send_reset(struct __sk_buff *skb, const struct packet *p)
{
    struct tcp tcp;
    if ((p->tcp_flags & TCP_RST) || bpf_skb_load_bytes(skb, p->l4, &tcp, sizeof(tcp)))
        return SHOT;
    __u32 payload = p->total - (p->l4 - IP_OFFSET) - (tcp.offset >> 4) * 4;
    payload += !!(tcp.flags & TCP_SYN) + !!(tcp.flags & TCP_FIN);
    struct tcp reset = {
        .source = tcp.destination,
        .destination = tcp.source,
        .offset = sizeof(tcp) / 4 << 4,
        .flags = TCP_RST,
    };
    if (tcp.flags & TCP_ACK) {
        reset.sequence = tcp.acknowledged;
    } else {
        reset.flags |= TCP_ACK;
        reset.acknowledged = htonl(htonl(tcp.sequence) + payload);
    }
    __u32 sum = pseudo_sum(p, sizeof(reset), IPPROTO_TCP);
    reset.checksum = fold(bpf_csum_diff(0, 0, (void *)&reset, sizeof(reset), sum));
    __u32 ip = p->v4 ? sizeof(struct ip4) : sizeof(struct ip6);
    if (bpf_skb_change_tail(skb, IP_OFFSET + ip + sizeof(reset), 0))
        return SHOT;
    swap_ethernet(skb);
    write_ip(skb, p, IPPROTO_TCP, sizeof(reset));
    bpf_skb_store_bytes(skb, IP_OFFSET + ip, &reset, sizeof(reset), 0);
    return bpf_redirect(skb->ifindex, 0);
}

INLINE int send_icmp4(struct __sk_buff *skb, const struct packet *p, __u8 code, __u32 mtu)
{
    struct {
        struct icmp icmp;
        __u8 quote[QUOTE4];
    } error = {.icmp = {.type = ICMP_UNREACHABLE, .code = code, .mtu = htonl(mtu)}};
    if (bpf_skb_load_bytes(skb, IP_OFFSET, error.quote, QUOTE4))
        return SHOT;
    error.icmp.checksum = fold(bpf_csum_diff(0, 0, (void *)&error, sizeof(error), 0));
    if (bpf_skb_change_tail(skb, IP_OFFSET + sizeof(struct ip4) + sizeof(error), 0))
        return SHOT;
    swap_ethernet(skb);
    write_ip(skb, p, IPPROTO_ICMP, sizeof(error));
    bpf_skb_store_bytes(skb, IP_OFFSET + sizeof(struct ip4), &error, sizeof(error), 0);
    return bpf_redirect(skb->ifindex, 0);
}

INLINE int send_icmp6(struct __sk_buff *skb, const struct packet *p, __u8 type, __u8 code,
                      __u32 mtu)
{
    struct {
        struct icmp icmp;
        __u8 quote[QUOTE6];
    } error = {.icmp = {.type = type, .code = code, .mtu = htonl(mtu)}};
    if (bpf_skb_load_bytes(skb, IP_OFFSET, error.quote, QUOTE6 - 8) ||
        bpf_skb_load_bytes(skb, p->l4, error.quote + QUOTE6 - 8, 8))
        return SHOT;
    __u32 sum = pseudo_sum(p, sizeof(error), IPPROTO_ICMPV6);
    error.icmp.checksum = fold(bpf_csum_diff(0, 0, (void *)&error, sizeof(error), sum));
    if (bpf_skb_change_tail(skb, IP_OFFSET + sizeof(struct ip6) + sizeof(error), 0))
        return SHOT;
    swap_ethernet(skb);
    write_ip(skb, p, IPPROTO_ICMPV6, sizeof(error));
    bpf_skb_store_bytes(skb, IP_OFFSET + sizeof(struct ip6), &error, sizeof(error), 0);
    return bpf_redirect(skb->ifindex, 0);
}

INLINE int refuse(struct __sk_buff *skb, const struct packet *p)
{
    if (p->key.protocol == IPPROTO_TCP)
        return send_reset(skb, p);
    if (p->v4)
        return send_icmp4(skb, p, ICMP_PORT, 0);
    return send_icmp6(skb, p, ICMPV6_UNREACHABLE, ICMPV6_PORT, 0);
}

INLINE int too_big(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
    if (p->v4)
        return send_icmp4(skb, p, ICMP_TOO_BIG, mtu);
    return send_icmp6(skb, p, ICMPV6_TOO_BIG, 0, mtu);
}
