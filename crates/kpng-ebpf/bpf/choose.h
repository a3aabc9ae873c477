/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The plan's decision, for sockets and packets alike: which frontend, which action, which target.
 */
#pragma once

#include "maps.h"

#define SECOND 1000000000ull

INLINE int same_address(const struct address *a, const struct address *b)
{
    return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
           a->word[3] == b->word[3];
}

INLINE struct address from_v4(__u32 ip)
{
    return (struct address){{0, 0, htonl(0xffff), ip}};
}

INLINE int is_v4(const struct address *a)
{
    return !a->word[0] && !a->word[1] && a->word[2] == htonl(0xffff);
}

/* The unspecified address of its family. */
INLINE int is_unspecified(const struct address *a)
{
    return !a->word[0] && !a->word[1] && !a->word[3] && (!a->word[2] || a->word[2] == htonl(0xffff));
}

INLINE int in_ranges(__u32 set, const struct address *a)
{
    struct range_key key = {.prefix_length = 160, .set = set, .address = *a};
    return bpf_map_lookup_elem(&ranges, &key) != 0;
}

/* The frontend with this destination, node ports included. */
INLINE struct frontend *find_frontend(struct frontend_key *key, int by_node)
{
    struct frontend *frontend = bpf_map_lookup_elem(&frontends, key);
    if (frontend)
        return frontend;
    __u32 *flags = bpf_map_lookup_elem(&addresses, &key->address);
    if (!flags || ((*flags & ONLY_NODE) && !by_node))
        return 0;
    struct frontend_key node_port = {
        .address.word[2] = is_v4(&key->address) ? htonl(0xffff) : 0,
        .port = key->port,
        .protocol = key->protocol,
    };
    return bpf_map_lookup_elem(&frontends, &node_port);
}

/* What becomes of packets to a destination that no frontend has. */
INLINE enum action unclaimed(const struct address *destination)
{
    struct frontend_key closed = {.address = *destination};
    if (bpf_map_lookup_elem(&frontends, &closed))
        return REJECT;
    return in_ranges(SERVICE_RANGES, destination) ? DROP : PASS;
}

INLINE int is_member(__u64 set, const struct endpoint *endpoint)
{
    struct member_key key = {.set = set, .endpoint = *endpoint};
    return bpf_map_lookup_elem(&members, &key) != 0;
}

INLINE int random_target(const struct choice *choice, struct endpoint *target)
{
    struct target_key key = {.pool = choice->pool};
    if (!choice->count)
        return 0;
    key.index = bpf_get_prandom_u32() % choice->count;
    struct endpoint *found = bpf_map_lookup_elem(&targets, &key);
    if (!found)
        return 0;
    *target = *found;
    return 1;
}

/*
 * A pod's socket that has chosen the pod itself is left to packets. So that the choice is not made
 * twice, which would make it less likely than others, it is kept for the packet that follows at once.
 */
#define CHOICE_LASTS (SECOND / 2)

INLINE void choose_itself(const struct frontend *frontend, const struct endpoint *itself)
{
    struct client_key key = {
        .service_port = frontend->service_port,
        .client = itself->address,
    };
    struct sticky choice = {.used = bpf_ktime_get_ns(), .target = *itself};
    bpf_map_update_elem(&affinity, &key, &choice, BPF_ANY);
}

INLINE int chose_itself(const struct frontend *frontend, const struct address *client,
                        struct endpoint *target)
{
    struct client_key key = {.service_port = frontend->service_port, .client = *client};
    struct sticky *choice = bpf_map_lookup_elem(&affinity, &key);
    if (!choice || !same_address(&choice->target.address, client) ||
        bpf_ktime_get_ns() - choice->used > CHOICE_LASTS)
        return 0;
    *target = choice->target;
    bpf_map_delete_elem(&affinity, &key);
    return 1;
}

/*
 * Chooses a target for `client`. Fails only in the moment when a pool is replaced by another, long
 * after the frontend that was read has been.
 */
INLINE int choose_target(const struct frontend *frontend, const struct choice *choice,
                         const struct address *client, struct endpoint *target)
{
    if (!frontend->affinity_seconds)
        return chose_itself(frontend, client, target) || random_target(choice, target);
    struct client_key key = {.service_port = frontend->service_port, .client = *client};
    struct sticky fresh = {.used = bpf_ktime_get_ns()};
    struct sticky *sticky = bpf_map_lookup_elem(&affinity, &key);
    if (sticky && fresh.used - sticky->used < frontend->affinity_seconds * SECOND &&
        is_member(choice->pool, &sticky->target)) {
        *target = sticky->target;
    } else if (!random_target(choice, target)) {
        return 0;
    }
    fresh.target = *target;
    bpf_map_update_elem(&affinity, &key, &fresh, BPF_ANY);
    return 1;
}
