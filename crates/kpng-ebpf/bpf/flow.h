/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Translated connections: two flows each, one for every direction. Each knows enough to make the
 * other, so that either can fall out of the map, where the least recently used go when it is full.
 *
 * Nobody walks through the map: a flow that was idle for too long counts as gone when it is met.
 */
#pragma once

#include "choose.h"

/* Seconds after which an idle flow is over. Those of UDP are conntrack's. */
#define TCP_IDLE 28800
#define TCP_OPENING 60
#define TCP_HALF_CLOSED 300
#define TCP_CLOSED 10
#define UDP_IDLE 120
#define UDP_UNANSWERED 30

/* flow.closing: who sent a FIN. A reset counts as both. */
#define CLOSED_BY_CLIENT 1
#define CLOSED_BY_TARGET 2
#define CLOSED_BY_BOTH 3

#define PORT_TRIES 32
/* Has no divisor in common with the usual numbers of ports. */
#define PORT_STEP 251

INLINE __u32 now_seconds(void)
{
    return bpf_ktime_get_ns() / SECOND;
}

INLINE __u32 longest_idle(const struct flow *flow, __u8 protocol)
{
    if (protocol == IPPROTO_UDP)
        return flow->answered ? UDP_IDLE : UDP_UNANSWERED;
    if (flow->closing == CLOSED_BY_BOTH)
        return TCP_CLOSED;
    if (flow->closing)
        return TCP_HALF_CLOSED;
    return flow->answered ? TCP_IDLE : TCP_OPENING;
}

INLINE int is_expired(const struct flow *flow, __u8 protocol, __u32 now)
{
    /* Another processor may have seen it a moment later than `now`. */
    __s32 idle = now - flow->seen;
    return idle > (__s32)longest_idle(flow, protocol);
}

/* The key of packets that come back to a flow. */
INLINE struct flow_key answers_to(const struct flow *flow, __u8 protocol)
{
    return (struct flow_key){
        .source = flow->destination,
        .destination = flow->source,
        .source_port = flow->destination_port,
        .destination_port = flow->source_port,
        .protocol = protocol,
    };
}

/* The flow of packets that come back to a flow. */
INLINE struct flow back_from(const struct flow_key *key, const struct flow *flow)
{
    return (struct flow){
        .source = key->destination,
        .destination = key->source,
        .source_port = key->destination_port,
        .destination_port = key->source_port,
        .service_port = flow->service_port,
        .seen = flow->seen,
        .closing = flow->closing,
        .answered = flow->answered,
        .is_answer = !flow->is_answer,
    };
}

INLINE int leaves_alike(const struct flow *a, const struct flow *b)
{
    return same_address(&a->source, &b->source) && same_address(&a->destination, &b->destination) &&
           a->source_port == b->source_port && a->destination_port == b->destination_port;
}

/* Takes the key of the flow's answers, unless a living flow of another connection has it. */
FUNCTION int claim(const struct flow_key *key, const struct flow *flow)
{
    if (!key || !flow)
        return 0;
    struct flow_key answers = answers_to(flow, key->protocol);
    struct flow back = back_from(key, flow);
    if (!bpf_map_update_elem(&flows, &answers, &back, BPF_NOEXIST))
        return 1;
    struct flow *other = bpf_map_lookup_elem(&flows, &answers);
    if (other && !leaves_alike(other, &back) && !is_expired(other, answers.protocol, back.seen))
        return 0;
    return bpf_map_update_elem(&flows, &answers, &back, BPF_ANY) == 0;
}

FUNCTION int put_flow(const struct flow_key *key, const struct flow *flow)
{
    if (!key || !flow)
        return 0;
    struct flow_key own_key = *key;
    struct flow own_flow = *flow;
    return bpf_map_update_elem(&flows, &own_key, &own_flow, BPF_ANY) == 0;
}

/* The port to try: the client's own at first when the range has a place for it, then any. */
INLINE __u16 source_port(const struct flow_key *key, int masquerade, __u32 attempt, __u32 random)
{
    if (!config.snat_count || (!attempt && !masquerade))
        return key->source_port;
    __u32 place = attempt ? random + attempt * PORT_STEP : ntohs(key->source_port);
    return htons(config.snat_first + place % config.snat_count);
}

/*
 * Remembers a connection: packets that fit `key` leave as `flow` says, and answers are turned back.
 * The flow's source port is chosen here. Without `masquerade` it is the client's own, unless the
 * answers of another connection of this client look the same: it may use one port for two
 * frontends that share a target. Fails when all ports that were tried are in use.
 */
FUNCTION int remember(const struct flow_key *key, struct flow *flow, int masquerade)
{
    if (!key || !flow)
        return 0;
    __u32 random = bpf_get_prandom_u32();
    for (__u32 attempt = 0; attempt < PORT_TRIES; attempt++) {
        flow->source_port = source_port(key, masquerade, attempt, random);
        if (claim(key, flow))
            return put_flow(key, flow);
    }
    return 0;
}

/*
 * Notes that a flow is used, and what became known of the connection, in both directions. Writes at
 * most once a second if nothing did.
 */
FUNCTION int touch(const struct flow_key *key, struct flow *flow, __u8 closing)
{
    if (!key || !flow)
        return 0;
    __u32 now = now_seconds();
    __u8 answered = flow->answered | flow->is_answer;
    closing |= flow->closing;
    if (flow->seen == now && flow->answered == answered && flow->closing == closing)
        return 0;
    flow->seen = now;
    flow->answered = answered;
    flow->closing = closing;
    struct flow_key answers = answers_to(flow, key->protocol);
    struct flow *other = bpf_map_lookup_elem(&flows, &answers);
    if (other) {
        other->seen = now;
        other->answered = answered;
        other->closing |= closing;
        return 0;
    }
    struct flow back = back_from(key, flow);
    bpf_map_update_elem(&flows, &answers, &back, BPF_NOEXIST);
    return 0;
}
