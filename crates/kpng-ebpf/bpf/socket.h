/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services at the sockets of pods and node: a socket is connected to the endpoint itself, so
 * packets need no translation. The application is shown the frontend's address.
 *
 * A socket knows its network namespace, but not yet its address. What depends on the address of a
 * pod (source ranges, affinity, masquerading) is left to the packets: see wire.h.
 */
#pragma once

#include "flow.h"

/* What becomes of the socket's destination. */
enum verdict { LEAVE, REWRITE, REFUSE };

struct request {
    struct address destination;
    struct address source; /* bound to; unspecified if it is not */
    __u16 port;
    __u16 source_port;
    __u8 protocol;
    __u8 by_node;
    __u8 connects;
};

INLINE struct endpoint destination_of(const struct request *r)
{
    return (struct endpoint){.address = r->destination, .port = r->port};
}

INLINE int is_bound(long outcome, const struct frontend *frontend, const struct endpoint *target)
{
    if (!outcome)
        choose_itself(frontend, target);
    return outcome != -EADDRNOTAVAIL;
}

/* Whether the endpoint may be the pod itself. Such connections are masqueraded, so left alone. */
INLINE int may_be_itself(struct bpf_sock_addr *ctx, const struct request *r,
                         const struct frontend *frontend, const struct endpoint *target)
{
    if (!is_unspecified(&r->source))
        return same_address(&r->source, &target->address);
    int v4 = is_v4(&target->address);
    if (!r->connects) {
        struct bpf_sock_tuple tuple = {};
        if (v4) {
            tuple.ipv4.daddr = target->address.word[3];
            tuple.ipv4.dport = target->port;
        } else {
            __builtin_memcpy(tuple.ipv6.daddr, &target->address, 16);
            tuple.ipv6.dport = target->port;
        }
        __u32 size = v4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6);
        struct bpf_sock *sock = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
        if (sock)
            bpf_sk_release(sock);
        return sock != 0;
    }
    /*
     * The kernel binds a socket to its own addresses only. If it does, the address is the one that
     * the connection would have had anyway.
     */
    if (v4 && ctx->family == AF_INET) {
        struct {
            __u16 family;
            __u16 port;
            __u32 ip;
            __u64 zero;
        } address = {.family = AF_INET, .ip = target->address.word[3]};
        return is_bound(bpf_bind(ctx, &address, sizeof(address)), frontend, target);
    }
    struct {
        __u16 family;
        __u16 port;
        __u32 flow;
        struct address ip;
        __u32 scope;
    } address = {.family = AF_INET6, .ip = target->address};
    return is_bound(bpf_bind(ctx, &address, sizeof(address)), frontend, target);
}

/*
 * A socket of the node that is bound to another than the primary address, and whose connection is
 * masqueraded: its packets get the primary address on their way out.
 */
INLINE int masquerade_bound(const struct request *r, const struct endpoint *target)
{
    struct flow_key key = {
        .source = r->source,
        .destination = target->address,
        .source_port = r->source_port,
        .destination_port = target->port,
        .protocol = r->protocol,
    };
    struct flow flow = {
        .source = config.node[!is_v4(&target->address)],
        .destination = target->address,
        .destination_port = target->port,
        .source_port = r->source_port,
        .seen = now_seconds(),
        .answered = 1,
    };
    return remember(&key, &flow, 1);
}

INLINE enum verdict decide(struct bpf_sock_addr *ctx, const struct request *r,
                           struct endpoint *target)
{
    struct frontend_key key = {
        .address = r->destination,
        .port = r->port,
        .protocol = r->protocol,
    };
    struct frontend *frontend = find_frontend(&key, r->by_node);
    if (!frontend)
        return unclaimed(&r->destination) == REJECT ? REFUSE : LEAVE;
    int v6 = !is_v4(&r->destination);
    const struct address node = config.node[v6];
    const struct address client = is_unspecified(&r->source) ? node : r->source;
    if (r->by_node) {
        if (frontend->sources && !in_ranges(frontend->sources, &client))
            return LEAVE; /* dropped on the way out */
    } else if (frontend->sources || frontend->affinity_seconds) {
        return LEAVE;
    }
    enum origin origin = r->by_node ? NODE : config.detects_pods[v6] ? POD : OUTSIDE;
    struct choice *choice = &frontend->by_origin[origin];
    if (choice->action == REJECT)
        return REFUSE;
    if (choice->action != FORWARD || (choice->masquerade && !r->by_node))
        return LEAVE;
    if (!choose_target(frontend, choice, &client, target))
        return LEAVE;
    if (!r->by_node)
        return may_be_itself(ctx, r, frontend, target) ? LEAVE : REWRITE;
    if (choice->masquerade && r->source_port && !same_address(&client, &node))
        masquerade_bound(r, target);
    return REWRITE;
}

/* Remembers what the application believes to talk to. */
INLINE void remember_peer(void *ctx, const struct request *r, const struct endpoint *target)
{
    struct peer_key key = {.socket = bpf_get_socket_cookie(ctx), .target = *target};
    struct endpoint frontend = destination_of(r);
    bpf_map_update_elem(&peers, &key, &frontend, BPF_ANY);
}

/* What the application shall see instead of `endpoint`, if the socket was sent there by us. */
INLINE struct endpoint *believed_peer(void *ctx, const struct endpoint *endpoint)
{
    struct peer_key key = {.socket = bpf_get_socket_cookie(ctx), .target = *endpoint};
    return bpf_map_lookup_elem(&peers, &key);
}
