/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets, sent on as a router does, by bpf_fib_lookup and bpf_redirect_neigh.
 *
 * The node's own stack does not see a packet that is sent on. It could not accept one with a source
 * address of its own, and its connection tracking would see half of each connection. A packet for
 * the node itself (an endpoint in the host's network) is left to the stack.
 */
#pragma once

#include "wire_answer.h"

enum route_kind { TO_STACK, AWAY, TOO_LARGE, NOWHERE };

struct route {
    enum route_kind kind;
    __u32 device;
    __u32 mtu;
    struct bpf_redir_neigh next_hop;
};

#ifndef BPF_FIB_LOOKUP_SRC
#define BPF_FIB_LOOKUP_SRC (1u << 4)
#endif

INLINE enum route_kind kind_of(long answer)
{
    switch (answer) {
    case BPF_FIB_LKUP_RET_SUCCESS:
    case BPF_FIB_LKUP_RET_NO_NEIGH:
        return AWAY;
    case BPF_FIB_LKUP_RET_FRAG_NEEDED:
        return TOO_LARGE;
    case BPF_FIB_LKUP_RET_BLACKHOLE:
    case BPF_FIB_LKUP_RET_UNREACHABLE:
    case BPF_FIB_LKUP_RET_PROHIBIT:
        return NOWHERE;
    default:
        return TO_STACK;
    }
}

INLINE void prepare(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *to,
                    struct bpf_fib_lookup *fib)
{
    __builtin_memset(fib, 0, sizeof(*fib));
    fib->family = packet->v6 ? AF_INET6 : AF_INET;
    fib->l4_protocol = packet->key.protocol;
    fib->sport = to->source_port;
    fib->dport = to->destination_port;
    fib->tot_len = packet->length;
    fib->ifindex = skb->ifindex;
    if (packet->v6) {
        fib->flowinfo = packet->class;
        __builtin_memcpy(fib->ipv6_src, &to->source, sizeof(fib->ipv6_src));
        __builtin_memcpy(fib->ipv6_dst, &to->destination, sizeof(fib->ipv6_dst));
    } else {
        fib->tos = packet->class;
        fib->ipv4_src = to->source.word[3];
        fib->ipv4_dst = to->destination.word[3];
    }
}

/* The way of a packet that is to leave as `to`. */
FUNCTION int find_route(struct __sk_buff *skb, const struct packet *packet,
                        const struct flow_key *to, struct route *route)
{
    if (!packet || !to || !route)
        return 0;
    struct bpf_fib_lookup fib;
    prepare(skb, packet, to, &fib);
    route->kind = kind_of(bpf_fib_lookup(skb, &fib, sizeof(fib), 0));
    route->device = fib.ifindex;
    route->mtu = fib.mtu_result;
    /* The next hop may be of the other family (RFC 5549). */
    route->next_hop.nh_family = fib.family;
    __builtin_memcpy(route->next_hop.ipv6_nh, fib.ipv6_dst, sizeof(fib.ipv6_dst));
    return 0;
}

/*
 * The node's address that packets to `to->destination` get, or nothing when the node itself is the
 * destination: it answers to the client directly. Linux before 6.7 does not tell the address of a
 * route; there it is the primary one.
 */
FUNCTION int own_address(struct __sk_buff *skb, const struct packet *packet,
                         const struct flow_key *to, struct address *own)
{
    if (!packet || !to || !own)
        return 0;
    struct bpf_fib_lookup fib;
    prepare(skb, packet, to, &fib);
    fib.ipv4_src = 0;
    long answer = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SRC);
    *own = packet->v6 ? *(struct address *)fib.ipv6_src : from_v4(fib.ipv4_src);
    if (answer < 0 || is_unspecified(own)) {
        prepare(skb, packet, to, &fib);
        answer = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
        *own = config.node[packet->v6 != 0];
    }
    return kind_of(answer) != TO_STACK;
}

/* Sends a packet on that is as it has to be. */
INLINE int hand_over(struct __sk_buff *skb, const struct packet *packet, struct route *route)
{
    pass_hop(skb, packet);
    /* The kernel replaces the Ethernet header, so there must be one. */
    if (!packet->l3 && bpf_skb_change_head(skb, ETH_HLEN, 0))
        return SHOT;
    return bpf_redirect_neigh(route->device, &route->next_hop, sizeof(route->next_hop), 0);
}

/* Sends a packet on as `to`. */
FUNCTION int send_on(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *to)
{
    if (!packet || !to)
        return SHOT;
    struct route route;
    find_route(skb, packet, to, &route);
    switch (route.kind) {
    case TO_STACK:
        rewrite(skb, packet, to);
        return NEXT;
    case TOO_LARGE:
        return answer_icmp(skb, packet, TOO_BIG, route.mtu);
    case NOWHERE:
        return answer_icmp(skb, packet, NO_ROUTE, 0);
    case AWAY:
        break;
    }
    if (packet->hop_limit <= 1)
        return answer_icmp(skb, packet, HOPS_EXCEEDED, 0);
    rewrite(skb, packet, to);
    return hand_over(skb, packet, &route);
}
