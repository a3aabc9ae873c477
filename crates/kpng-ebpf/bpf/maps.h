/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * All maps. Capacities are set by the loader: those of tables by need, those of states by
 * configuration. See types.h for what they hold.
 */
#pragma once

#include "types.h"

const volatile struct config config SEC(".rodata") = {};

#define TABLE(name, key_type, value_type)          \
    struct {                                       \
        __uint(type, BPF_MAP_TYPE_HASH);           \
        __uint(map_flags, BPF_F_NO_PREALLOC);      \
        __uint(max_entries, 1);                    \
        __uint(key_size, sizeof(key_type));        \
        __uint(value_size, sizeof(value_type));    \
    } name SEC(".maps")

#define STATE(name, key_type, value_type)          \
    struct {                                       \
        __uint(type, BPF_MAP_TYPE_LRU_HASH);       \
        __uint(max_entries, 1);                    \
        __uint(key_size, sizeof(key_type));        \
        __uint(value_size, sizeof(value_type));    \
    } name SEC(".maps")

TABLE(frontends, struct frontend_key, struct frontend);
TABLE(targets, struct target_key, struct endpoint);
TABLE(members, struct member_key, __u8);
TABLE(addresses, struct address, __u32);
TABLE(pod_devices, __u32, __u8);

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(struct range_key));
    __uint(value_size, sizeof(__u8));
} ranges SEC(".maps");

STATE(affinity, struct client_key, struct sticky);
STATE(peers, struct peer_key, struct endpoint);
STATE(flows, struct flow_key, struct flow);
STATE(fragments, struct fragment_key, struct fragment_ports);
