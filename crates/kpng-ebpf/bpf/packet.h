/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services in packets: what comes from outside, and what sockets left to the wire.
 *
 * Both directions of a translated connection are forwarded here, by the kernel's routes but around
 * its connection tracking, which would see one half only and call it invalid.
 */
#pragma once

#include "refuse.h"

/* Where the routes lead. */
struct way {
    int result; /* BPF_FIB_LKUP_RET_* */
    __u32 ifindex;
    __u32 mtu;
    __u8 ethernet[12];
};

#define IS_LOCAL(way) ((way)->result == BPF_FIB_LKUP_RET_NOT_FWDED)

INLINE void find_way(struct __sk_buff *skb, const struct packet *p, const struct address *source,
                     const struct address *destination, struct way *way)
{
    struct bpf_fib_lookup fib = {
        .family = p->v4 ? AF_INET : AF_INET6,
        .ifindex = skb->ifindex,
        .tot_len = skb->gso_size ? 0 : p->total,
        .l4_protocol = p->key.protocol,
    };
    if (p->v4) {
        fib.tos = p->tos;
        fib.ipv4_src = source->word[3];
        fib.ipv4_dst = destination->word[3];
    } else {
        __builtin_memcpy(fib.ipv6_src, source, 16);
        __builtin_memcpy(fib.ipv6_dst, destination, 16);
    }
    way->result = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
    way->ifindex = fib.ifindex;
    way->mtu = fib.mtu_result;
    __builtin_memcpy(way->ethernet, fib.dmac, 6);
    __builtin_memcpy(way->ethernet + 6, fib.smac, 6);
}

/* Sends a packet, which is rewritten here, on its way. */
INLINE int forward(struct __sk_buff *skb, const struct packet *p, const struct flow *flow,
                   const struct way *way)
{
    if (way->result == BPF_FIB_LKUP_RET_FRAG_NEEDED)
        return too_big(skb, p, way->mtu);
    int known = way->result == BPF_FIB_LKUP_RET_SUCCESS;
    if (!known && way->result != BPF_FIB_LKUP_RET_NO_NEIGH) {
        rewrite(skb, p, flow);
        return NEXT; /* to this node itself, or as the stack thinks best */
    }
    if (p->ttl <= 1)
        return SHOT;
    rewrite(skb, p, flow);
    age(skb, p);
    if (!known)
        return bpf_redirect_neigh(way->ifindex, 0, 0, 0);
    bpf_skb_store_bytes(skb, 0, way->ethernet, sizeof(way->ethernet), 0);
    return bpf_redirect(way->ifindex, 0);
}

/* Notes that a flow is used. */
INLINE void touch(const struct packet *p, struct flow *flow)
{
    __u32 now = now_seconds();
    if (p->tcp_flags & (TCP_FIN | TCP_RST))
        flow->closing = 1;
    if (flow->seen == now && (flow->answered || flow->service_port == 0))
        return;
    flow->seen = now;
    struct flow_key key = answers_to(flow, p->key.protocol);
    struct flow *other = bpf_map_lookup_elem(&flows, &key);
    if (!other)
        return;
    /* The direction that is idle is in use as long as the other is. */
    other->seen = now;
    other->answered = 1;
    if (!flow->service_port)
        flow->answered = 1;
    if (flow->closing)
        other->closing = 1;
}

/* The flow of a packet, unless its time is over. */
INLINE struct flow *find_flow(const struct packet *p)
{
    struct flow *flow = bpf_map_lookup_elem(&flows, &p->key);
    if (!flow || !flow->service_port)
        return flow;
    if (p->key.protocol == IPPROTO_UDP) {
        struct endpoint target = {.address = flow->destination, .port = flow->destination_port};
        if (!is_member(flow->service_port, &target))
            return 0;
    } else if (flow->closing && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
        return 0; /* the client uses its port again */
    }
    return is_expired(flow, p->key.protocol, now_seconds()) ? 0 : flow;
}

INLINE enum origin origin_of(const struct __sk_buff *skb, const struct packet *p)
{
    if (!config.detects_pods[!p->v4])
        return OUTSIDE;
    if (!config.pods_by_device)
        return in_ranges(POD_RANGES, &p->key.source) ? POD : OUTSIDE;
    __u32 ifindex = skb->ifindex;
    return bpf_map_lookup_elem(&pod_devices, &ifindex) ? POD : OUTSIDE;
}

/* A connection begins that is forwarded to a target of `choice`. */
INLINE int begin(struct __sk_buff *skb, const struct packet *p, const struct frontend *frontend,
                 const struct choice *choice)
{
    if (p->key.protocol == IPPROTO_TCP && !(p->tcp_flags & TCP_SYN))
        return refuse(skb, p); /* of a connection that nobody knows any more */
    struct endpoint target;
    if (!choose_target(frontend, choice, &p->key.source, &target))
        return SHOT;
    struct flow flow = {
        .source = p->key.source,
        .destination = target.address,
        .source_port = p->key.source_port,
        .destination_port = target.port,
        .service_port = frontend->service_port,
        .seen = now_seconds(),
    };
    int masquerade = choice->masquerade || same_address(&p->key.source, &target.address);
    const struct address node = config.node[!p->v4];
    struct way way;
    find_way(skb, p, masquerade ? &node : &flow.source, &flow.destination, &way);
    if (IS_LOCAL(&way))
        masquerade = 0; /* the answer passes here anyway */
    if (masquerade)
        flow.source = node;
    if (!remember(&p->key, &flow, masquerade))
        return SHOT;
    return forward(skb, p, &flow, &way);
}

INLINE int packet_arrives(struct __sk_buff *skb)
{
    struct packet p = {};
    if (!parse(skb, &p))
        return NEXT;
    if (!has_ports(&p))
        return NEXT;
    struct flow *flow = find_flow(&p);
    if (flow) {
        touch(&p, flow);
        struct way way;
        find_way(skb, &p, &flow->source, &flow->destination, &way);
        return forward(skb, &p, flow, &way);
    }
    struct frontend_key key = {
        .address = p.key.destination,
        .port = p.key.destination_port,
        .protocol = p.key.protocol,
    };
    struct frontend *frontend = find_frontend(&key, 0);
    enum action action;
    struct choice *choice = 0;
    if (!frontend) {
        action = unclaimed(&p.key.destination);
    } else if (frontend->sources && !in_ranges(frontend->sources, &p.key.source)) {
        action = DROP;
    } else {
        enum origin origin = origin_of(skb, &p);
        choice = &frontend->by_origin[origin];
        action = choice->action;
    }
    if (action == PASS)
        return NEXT;
    if (action == DROP)
        return SHOT;
    if (action == REJECT || !choice)
        return refuse(skb, &p);
    return begin(skb, &p, frontend, choice);
}

/*
 * A packet of the node itself: answers of a target on this node are turned back, bound sockets
 * masqueraded, and what sockets could not drop is dropped. Forwarded packets pass.
 */
INLINE int packet_leaves(struct __sk_buff *skb)
{
    if (skb->ingress_ifindex)
        return NEXT;
    struct packet p = {};
    if (!parse(skb, &p) || !has_ports(&p))
        return NEXT;
    struct flow *flow = bpf_map_lookup_elem(&flows, &p.key);
    if (flow) {
        if (!same_address(&flow->destination, &p.key.destination))
            return NEXT;
        touch(&p, flow);
        rewrite(skb, &p, flow);
        return NEXT;
    }
    struct frontend_key key = {
        .address = p.key.destination,
        .port = p.key.destination_port,
        .protocol = p.key.protocol,
    };
    struct frontend *frontend = find_frontend(&key, 1);
    if (!frontend)
        return unclaimed(&p.key.destination) == PASS ? NEXT : SHOT;
    if (frontend->sources && !in_ranges(frontend->sources, &p.key.source))
        return SHOT;
    __u8 action = frontend->by_origin[NODE].action;
    return action == DROP || action == REJECT ? SHOT : NEXT;
}
