/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Translated connections: two flows each, one for every direction, and the ports of masqueraded
 * ones. A flow is kept by use; the oldest go when the map is full.
 */
#pragma once

#include "choose.h"

#define TCP_IDLE 28800
#define TCP_OPENING 60
#define TCP_CLOSING 60
#define UDP_IDLE 120
#define PORT_TRIES 16

INLINE __u32 now_seconds(void)
{
    return bpf_ktime_get_ns() / SECOND;
}

INLINE int is_expired(const struct flow *flow, __u8 protocol, __u32 now)
{
    __u32 idle = protocol == IPPROTO_UDP ? UDP_IDLE
                 : flow->closing         ? TCP_CLOSING
                 : flow->answered        ? TCP_IDLE
                                         : TCP_OPENING;
    return now - flow->seen > idle;
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

/*
 * Remembers a connection: packets that fit `key` leave as `flow` says, and answers are turned back.
 * With `masquerade` the flow's source port is chosen here. Fails when all ports that were tried
 * are in use.
 */
INLINE int remember(const struct flow_key *key, struct flow *flow, int masquerade)
{
    struct flow back = {
        .source = key->destination,
        .destination = key->source,
        .source_port = key->destination_port,
        .destination_port = key->source_port,
        .seen = flow->seen,
    };
    __u32 random = bpf_get_prandom_u32();
    __u32 tries = masquerade && config.snat_count ? PORT_TRIES : 1;
    for (__u32 i = 0; i < PORT_TRIES; i++) {
        if (i >= tries)
            return 0;
        if (masquerade && config.snat_count)
            flow->source_port = htons(config.snat_first + (random + i * 251) % config.snat_count);
        struct flow_key answers = answers_to(flow, key->protocol);
        struct flow *other = masquerade ? bpf_map_lookup_elem(&flows, &answers) : 0;
        __u64 how = BPF_ANY;
        if (other) {
            int ours = same_address(&other->destination, &key->source) &&
                       other->destination_port == key->source_port;
            if (!ours && !is_expired(other, key->protocol, flow->seen))
                continue;
        } else if (masquerade) {
            how = BPF_NOEXIST;
        }
        if (bpf_map_update_elem(&flows, &answers, &back, how))
            continue;
        return bpf_map_update_elem(&flows, key, flow, BPF_ANY) == 0;
    }
    return 0;
}
