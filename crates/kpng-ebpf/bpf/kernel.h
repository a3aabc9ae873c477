/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel offers to programs: section names, helpers, and protocol constants.
 *
 * <linux/bpf.h> declares numbers and structures, but no functions; a helper is called through a
 * pointer whose value is its number. So clang and the kernel's user headers are all it takes.
 */
#pragma once

#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline

/*
 * A function that the kernel verifies by itself, for any arguments, so the time that this takes does
 * not multiply. Its pointers may be null for all the verifier knows, so each begins with
 * `if (!pointer)`. All stacks along a chain of calls together have 512 bytes. Before Linux 6.2, keys and
 * values of maps may not be where such a pointer leads to, so they are copied.
 */
#define FUNCTION __attribute__((noinline))

/* The language of BTF map definitions. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

#define HELPER(result, name, ...) \
    static result (*bpf_##name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##name

HELPER(void *, map_lookup_elem, void *map, const void *key);
HELPER(long, map_update_elem, void *map, const void *key, const void *value, __u64 flags);
HELPER(long, map_delete_elem, void *map, const void *key);
HELPER(__u64, ktime_get_ns, void);
HELPER(__u32, get_prandom_u32, void);
HELPER(long, skb_load_bytes, const void *skb, __u32 offset, void *to, __u32 length);
HELPER(long, skb_store_bytes, void *skb, __u32 offset, const void *from, __u32 length, __u64 flags);
HELPER(long, l3_csum_replace, void *skb, __u32 offset, __u64 from, __u64 to, __u64 flags);
HELPER(long, l4_csum_replace, void *skb, __u32 offset, __u64 from, __u64 to, __u64 flags);
HELPER(__s64, csum_diff, void *from, __u32 from_size, void *to, __u32 to_size, __u32 seed);
HELPER(long, skb_change_head, void *skb, __u32 length, __u64 flags);
HELPER(long, skb_change_tail, void *skb, __u32 length, __u64 flags);
HELPER(long, skb_adjust_room, void *skb, __s32 difference, __u32 mode, __u64 flags);
HELPER(long, redirect, __u32 ifindex, __u64 flags);
HELPER(long, redirect_neigh, __u32 ifindex, void *next_hop, int length, __u64 flags);
HELPER(long, fib_lookup, void *ctx, struct bpf_fib_lookup *params, int length, __u32 flags);
HELPER(__u64, get_socket_cookie, void *ctx);
HELPER(__u64, get_netns_cookie, void *ctx);
HELPER(long, bind, void *ctx, void *address, int length);
HELPER(struct bpf_sock *, sk_lookup_udp, void *ctx, void *tuple, __u32 size, __u64 netns, __u64 flags);
HELPER(long, sk_release, struct bpf_sock *sock);
HELPER(int, set_retval, int retval);

#define htons(x) ((__u16)__builtin_bswap16(x))
#define ntohs(x) ((__u16)__builtin_bswap16(x))
#define htonl(x) ((__u32)__builtin_bswap32(x))
#define ntohl(x) ((__u32)__builtin_bswap32(x))

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_HLEN 14

#define ECONNREFUSED 111
#define EADDRNOTAVAIL 99

/* What a program at a device answers: let the next program or the stack decide, or drop. */
#define NEXT (-1)
#define SHOT 2
