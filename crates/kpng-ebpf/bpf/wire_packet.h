/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets, read: addresses and ports, and where their headers are.
 *
 * Everything is read by bpf_skb_load_bytes, which also reaches what lies outside of the linear part
 * of a packet. Offsets count from the start of the frame.
 */
#pragma once

#include "flow.h"

#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff

/* Headers that may stand between an IPv6 header and its transport (RFC 8200, 4.1). */
#define IPV6_HOP_BY_HOP 0
#define IPV6_ROUTING 43
#define IPV6_FRAGMENT 44
#define IPV6_DESTINATION_OPTIONS 60
/* More of them than a sane packet has. */
#define IPV6_EXTENSIONS 4

#define UDP_HEADER 8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct ipv4_header {
    __u8 version_and_length;
    __u8 tos;
    __u16 total_length;
    __u16 id;
    __u16 fragment;
    __u8 ttl;
    __u8 protocol;
    __u16 checksum;
    __u32 addresses[2]; /* source, destination */
};

struct ipv6_header {
    __u32 version_class_flow;
    __u16 payload_length;
    __u8 next_header;
    __u8 hop_limit;
    struct address addresses[2]; /* source, destination */
};

struct ipv6_extension {
    __u8 next_header;
    __u8 length;     /* in 8 octets, without the first 8 */
    __u16 fragment;  /* of a fragment header: offset, two reserved bits, whether more follow */
    __u32 id;        /* of a fragment header */
};

struct tcp_header {
    __u16 source_port;
    __u16 destination_port;
    __u32 sequence;
    __u32 acknowledgement;
    __u8 data_offset; /* in words, in the upper half */
    __u8 flags;
    __u16 window;
    __u16 checksum;
    __u16 urgent;
};

struct icmp_header {
    __u8 type;
    __u8 code;
    __u16 checksum;
    __u32 rest;
};

/* A packet, as far as we care. */
struct packet {
    struct flow_key key; /* ports are 0 unless has_ports */
    __u32 length;        /* from the IP header on; of one segment if it is to be segmented */
    __u32 class;         /* what routes may depend on: type of service, or IPv6 flow information */
    __u32 fragment_id;
    __u16 l3; /* where the IP header is */
    __u16 l4; /* where the transport's header is */
    __u8 v6;
    __u8 hop_limit;
    __u8 tcp_flags;
    __u8 has_ports;
    __u8 is_fragment;
    __u8 is_later_fragment; /* not the first: it has no transport header */
};

FUNCTION int read_v4(struct __sk_buff *skb, struct packet *packet)
{
    if (!packet)
        return 0;
    struct ipv4_header ip;
    if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)) || ip.version_and_length >> 4 != 4)
        return 0;
    packet->key.source = from_v4(ip.addresses[0]);
    packet->key.destination = from_v4(ip.addresses[1]);
    packet->key.protocol = ip.protocol;
    packet->length = ntohs(ip.total_length);
    packet->class = ip.tos;
    packet->hop_limit = ip.ttl;
    packet->l4 = packet->l3 + (ip.version_and_length & 0xf) * 4;
    __u16 fragment = ntohs(ip.fragment);
    packet->is_fragment = (fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) != 0;
    packet->is_later_fragment = (fragment & IPV4_FRAGMENT_OFFSET) != 0;
    packet->fragment_id = ip.id;
    return 1;
}

FUNCTION int read_v6(struct __sk_buff *skb, struct packet *packet)
{
    if (!packet)
        return 0;
    struct ipv6_header ip;
    struct ipv6_extension extension;
    if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)))
        return 0;
    packet->v6 = 1;
    packet->key.source = ip.addresses[0];
    packet->key.destination = ip.addresses[1];
    packet->length = sizeof(ip) + ntohs(ip.payload_length);
    packet->class = ip.version_class_flow & htonl(0x0fffffff);
    packet->hop_limit = ip.hop_limit;
    packet->l4 = packet->l3 + sizeof(ip);
    __u8 next = ip.next_header;
    for (int i = 0; i < IPV6_EXTENSIONS && !packet->is_later_fragment; i++) {
        if (next != IPV6_HOP_BY_HOP && next != IPV6_ROUTING && next != IPV6_FRAGMENT &&
            next != IPV6_DESTINATION_OPTIONS)
            break;
        if (bpf_skb_load_bytes(skb, packet->l4, &extension, sizeof(extension)))
            return 0;
        if (next == IPV6_FRAGMENT) {
            packet->is_fragment = 1;
            packet->is_later_fragment = ntohs(extension.fragment) > 7;
            packet->fragment_id = extension.id;
            packet->l4 += sizeof(extension);
        } else {
            packet->l4 += (extension.length + 1) * 8;
        }
        next = extension.next_header;
    }
    packet->key.protocol = next;
    return 1;
}

/* Reads both ports. */
INLINE int read_ports(struct __sk_buff *skb, struct packet *packet)
{
    __u16 ports[2];
    if (bpf_skb_load_bytes(skb, packet->l4, ports, sizeof(ports)))
        return 0;
    packet->key.source_port = ports[0];
    packet->key.destination_port = ports[1];
    packet->has_ports = 1;
    return 1;
}

/* Reads the transport's header. */
FUNCTION int read_transport(struct __sk_buff *skb, struct packet *packet)
{
    if (!packet || !read_ports(skb, packet))
        return 0;
    __u32 header = UDP_HEADER;
    if (packet->key.protocol == IPPROTO_TCP) {
        struct tcp_header tcp;
        if (bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof(tcp)))
            return 0;
        packet->tcp_flags = tcp.flags;
        header = (tcp.data_offset >> 4) * 4;
    }
    /* Whoever limits the size of packets sees the segments. */
    if (skb->gso_size)
        packet->length = packet->l4 - packet->l3 + header + skb->gso_size;
    return 1;
}

/*
 * The later parts of a packet have no ports: they are remembered from the first part, so a part
 * that overtakes it is not recognized.
 */
FUNCTION int fragment_ports(struct packet *packet)
{
    if (!packet)
        return 0;
    struct fragment_key key = {
        .source = packet->key.source,
        .destination = packet->key.destination,
        .id = packet->fragment_id,
        .protocol = packet->key.protocol,
    };
    struct fragment_ports ports = {packet->key.source_port, packet->key.destination_port};
    if (!packet->is_later_fragment)
        return bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY) == 0;
    struct fragment_ports *first = bpf_map_lookup_elem(&fragments, &key);
    if (!first)
        return 0;
    packet->key.source_port = first->source_port;
    packet->key.destination_port = first->destination_port;
    packet->has_ports = 1;
    return 1;
}

INLINE int is_tcp_or_udp(const struct packet *packet)
{
    return packet->key.protocol == IPPROTO_TCP || packet->key.protocol == IPPROTO_UDP;
}

/* Reads the packet at `packet->l3`. Fails when it is none for us. */
FUNCTION int read_packet(struct __sk_buff *skb, struct packet *packet)
{
    if (!packet)
        return 0;
    /* It comes again without the tag, at the device of the VLAN. */
    if (skb->vlan_present)
        return 0;
    if (skb->protocol == htons(ETH_P_IP)) {
        if (!read_v4(skb, packet))
            return 0;
    } else if (skb->protocol != htons(ETH_P_IPV6) || !read_v6(skb, packet)) {
        return 0;
    }
    if (!is_tcp_or_udp(packet))
        return 1;
    if (!packet->is_later_fragment && !read_transport(skb, packet))
        return 0;
    return !packet->is_fragment || fragment_ports(packet);
}
