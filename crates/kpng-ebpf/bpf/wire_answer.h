/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers that the programs make themselves: TCP resets, and ICMP errors. A packet is turned into
 * the answer to it, and leaves by the device that it came in through.
 */
#pragma once

#include "wire_rewrite.h"

#define ANSWER_HOPS 64

/* An ICMP error: of IPv4, of IPv6, and what it means. */
struct icmp_error {
    __u8 type_v4, code_v4;
    __u8 type_v6, code_v6;
};

#define PORT_UNREACHABLE ((struct icmp_error){3, 3, 1, 4})
#define NO_ROUTE ((struct icmp_error){3, 1, 1, 0})
#define TOO_BIG ((struct icmp_error){3, 4, 2, 0})
#define HOPS_EXCEEDED ((struct icmp_error){11, 0, 3, 0})

/* As much of the packet as every receiver needs to find its socket (RFC 792). */
#define QUOTED 8

struct icmp_v4 {
    struct ipv4_header ip;
    struct icmp_header icmp;
    struct ipv4_header quoted_ip;
    __u8 quoted[QUOTED];
};

struct icmp_v6 {
    struct ipv6_header ip;
    struct icmp_header icmp;
    struct ipv6_header quoted_ip;
    __u8 quoted[QUOTED];
};

struct reset_v4 {
    struct ipv4_header ip;
    struct tcp_header tcp;
};

struct reset_v6 {
    struct ipv6_header ip;
    struct tcp_header tcp;
};

/* What a transport's checksum covers beside the transport's bytes (RFC 8200, 8.1). */
struct pseudo_header {
    struct address addresses[2];
    __u32 length;
    __u32 protocol;
};

/* The checksum of `length` bytes, a multiple of 4, added to the sum `seed`. */
INLINE __u16 checksum(void *data, __u32 length, __u32 seed)
{
    __u64 sum = (__u32)bpf_csum_diff(0, 0, data, length, seed);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

/*
 * The sum of the pseudo header; IPv4 addresses count alike in both forms but for the two bytes
 * 0xffff, which count as nothing.
 */
INLINE __u32 pseudo_sum(const struct flow_key *key, __u16 length, __u8 protocol)
{
    struct pseudo_header header = {
        .addresses = {key->source, key->destination},
        .length = htonl(length),
        .protocol = htonl(protocol),
    };
    return bpf_csum_diff(0, 0, &header, sizeof(header), 0);
}

/*
 * Cuts the frame to a link-layer header and `length` bytes of anything. What is cut off includes
 * the old transport header, which makes the kernel forget about a checksum that is yet to be
 * filled in: it would be written into the answer.
 */
FUNCTION int make_room(struct __sk_buff *skb, const struct packet *packet, __u32 length)
{
    if (!packet)
        return 0;
    __u32 cut = packet->l4 + sizeof(struct tcp_header);
    if (cut > 256)
        return 0;
    return !bpf_skb_change_tail(skb, packet->l3 + length + cut, 0) &&
           !bpf_skb_adjust_room(skb, -(__s32)cut, BPF_ADJ_ROOM_MAC, 0);
}

/* Sends the frame back to the station that it came from, if the device has more than one. */
INLINE int send_back(struct __sk_buff *skb, const struct packet *packet)
{
    __u16 stations[6]; /* destination, source */
    if (!packet->l3)
        return bpf_redirect(skb->ifindex, 0);
    if (bpf_skb_load_bytes(skb, 0, stations, sizeof(stations)))
        return SHOT;
    __u16 swapped[6] = {stations[3], stations[4], stations[5],
                        stations[0], stations[1], stations[2]};
    bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), BPF_F_RECOMPUTE_CSUM);
    return bpf_redirect(skb->ifindex, 0);
}

/* The header of an answer with `length` bytes after it. */
INLINE struct ipv4_header answer_v4(const struct packet *packet, __u16 length, __u8 protocol)
{
    struct ipv4_header ip = {
        .version_and_length = 0x45,
        .total_length = htons(sizeof(ip) + length),
        .fragment = htons(IPV4_DONT_FRAGMENT),
        .ttl = ANSWER_HOPS,
        .protocol = protocol,
        .addresses = {packet->key.destination.word[3], packet->key.source.word[3]},
    };
    ip.checksum = checksum(&ip, sizeof(ip), 0);
    return ip;
}

INLINE struct ipv6_header answer_v6(const struct packet *packet, __u16 length, __u8 protocol)
{
    return (struct ipv6_header){
        .version_class_flow = htonl(6u << 28),
        .payload_length = htons(length),
        .next_header = protocol,
        .hop_limit = ANSWER_HOPS,
        .addresses = {packet->key.destination, packet->key.source},
    };
}

FUNCTION int answer_icmp_v4(struct __sk_buff *skb, const struct packet *packet,
                            const struct icmp_error *error, __u32 mtu)
{
    if (!packet || !error)
        return SHOT;
    struct icmp_v4 answer = {.icmp = {.type = error->type_v4, .code = error->code_v4}};
    __u16 length = sizeof(answer) - sizeof(answer.ip);
    if (bpf_skb_load_bytes(skb, packet->l3, &answer.quoted_ip, sizeof(answer.quoted_ip)) ||
        bpf_skb_load_bytes(skb, packet->l4, answer.quoted, QUOTED))
        return SHOT;
    /* Options are not quoted. */
    answer.quoted_ip.version_and_length = 0x45;
    answer.ip = answer_v4(packet, length, IPPROTO_ICMP);
    answer.icmp.rest = htonl(mtu);
    answer.icmp.checksum = checksum(&answer.icmp, length, 0);
    if (!make_room(skb, packet, sizeof(answer)))
        return SHOT;
    bpf_skb_store_bytes(skb, packet->l3, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
    return send_back(skb, packet);
}

FUNCTION int answer_icmp_v6(struct __sk_buff *skb, const struct packet *packet,
                            const struct icmp_error *error, __u32 mtu)
{
    if (!packet || !error)
        return SHOT;
    struct icmp_v6 answer = {.icmp = {.type = error->type_v6, .code = error->code_v6}};
    __u16 length = sizeof(answer) - sizeof(answer.ip);
    if (bpf_skb_load_bytes(skb, packet->l3, &answer.quoted_ip, sizeof(answer.quoted_ip)) ||
        bpf_skb_load_bytes(skb, packet->l4, answer.quoted, QUOTED))
        return SHOT;
    /* Extension headers are not quoted. */
    answer.quoted_ip.next_header = packet->key.protocol;
    answer.ip = answer_v6(packet, length, IPPROTO_ICMPV6);
    answer.icmp.rest = htonl(mtu);
    __u32 seed = pseudo_sum(&packet->key, length, IPPROTO_ICMPV6);
    answer.icmp.checksum = checksum(&answer.icmp, length, seed);
    if (!make_room(skb, packet, sizeof(answer)))
        return SHOT;
    bpf_skb_store_bytes(skb, packet->l3, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
    return send_back(skb, packet);
}

/* Answers with an ICMP error. Later parts of a packet are dropped: the first one is answered. */
INLINE int answer_icmp(struct __sk_buff *skb, const struct packet *packet, struct icmp_error error,
                       __u32 mtu)
{
    if (packet->is_later_fragment)
        return SHOT;
    if (packet->v6)
        return answer_icmp_v6(skb, packet, &error, mtu);
    return answer_icmp_v4(skb, packet, &error, mtu);
}

/* The reset that a closed port answers with (RFC 9293, 3.10.7.1). */
INLINE int reset_of(struct __sk_buff *skb, const struct packet *packet, struct tcp_header *reset)
{
    struct tcp_header tcp;
    if (bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof(tcp)) || tcp.flags & TCP_RST)
        return 0;
    *reset = (struct tcp_header){
        .source_port = tcp.destination_port,
        .destination_port = tcp.source_port,
        .data_offset = sizeof(tcp) / 4 << 4,
        .flags = TCP_RST,
    };
    if (tcp.flags & TCP_ACK) {
        reset->sequence = tcp.acknowledgement;
        return 1;
    }
    /* The frame may be longer than the packet, which a network fills up to its least length. */
    __u32 payload = packet->l3 + packet->length - packet->l4 - (tcp.data_offset >> 4) * 4;
    payload += (tcp.flags & TCP_SYN) != 0;
    payload += (tcp.flags & TCP_FIN) != 0;
    reset->acknowledgement = htonl(ntohl(tcp.sequence) + payload);
    reset->flags |= TCP_ACK;
    return 1;
}

FUNCTION int answer_reset(struct __sk_buff *skb, const struct packet *packet)
{
    if (!packet)
        return SHOT;
    __u32 seed = pseudo_sum(&packet->key, sizeof(struct tcp_header), IPPROTO_TCP);
    if (packet->v6) {
        struct reset_v6 answer;
        if (!reset_of(skb, packet, &answer.tcp) || !make_room(skb, packet, sizeof(answer)))
            return SHOT;
        answer.ip = answer_v6(packet, sizeof(answer.tcp), IPPROTO_TCP);
        answer.tcp.checksum = checksum(&answer.tcp, sizeof(answer.tcp), seed);
        bpf_skb_store_bytes(skb, packet->l3, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
    } else {
        struct reset_v4 answer;
        if (!reset_of(skb, packet, &answer.tcp) || !make_room(skb, packet, sizeof(answer)))
            return SHOT;
        answer.ip = answer_v4(packet, sizeof(answer.tcp), IPPROTO_TCP);
        answer.tcp.checksum = checksum(&answer.tcp, sizeof(answer.tcp), seed);
        bpf_skb_store_bytes(skb, packet->l3, &answer, sizeof(answer), BPF_F_RECOMPUTE_CSUM);
    }
    return send_back(skb, packet);
}

/* Refuses a packet so that its sender notices. */
INLINE int refuse(struct __sk_buff *skb, const struct packet *packet)
{
    if (packet->key.protocol != IPPROTO_TCP || packet->is_later_fragment)
        return answer_icmp(skb, packet, PORT_UNREACHABLE, 0);
    return answer_reset(skb, packet);
}
