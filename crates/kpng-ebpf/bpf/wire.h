/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services in packets: those that come in through a device, and those that the node sends itself.
 *
 *   wire_packet.h   reads packets            wire_rewrite.h  changes them
 *   wire_forward.h  sends them on            wire_answer.h   answers them with RST or ICMP
 *   wire_icmp.h     ICMP errors about translated packets
 *
 * A packet of a known connection is translated by its flow and sent on. Any other is looked up in
 * the plan. What is not for us goes on to other programs and the stack, untouched.
 */
#pragma once

#include "wire_icmp.h"

/* __sk_buff.pkt_type of frames to this host. */
#define TO_THIS_HOST 0

/* What a packet says about the end of its connection. */
INLINE __u8 closing_by(const struct packet *packet, const struct flow *flow)
{
    if (packet->tcp_flags & TCP_RST)
        return CLOSED_BY_BOTH;
    if (packet->tcp_flags & TCP_FIN)
        return flow->is_answer ? CLOSED_BY_TARGET : CLOSED_BY_CLIENT;
    return 0;
}

INLINE int opens(const struct packet *packet)
{
    return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* A UDP flow leads to a target that no longer serves: the next packet gets another. */
INLINE int is_dead(const struct packet *packet, const struct flow *flow)
{
    if (packet->key.protocol != IPPROTO_UDP || flow->is_answer || !flow->service_port)
        return 0;
    struct endpoint target = {.address = flow->destination, .port = flow->destination_port};
    return !is_member(flow->service_port, &target);
}

/* Translates by the flow of the packet. Fails when it has none. */
FUNCTION int follow_flow(const struct packet *packet, struct flow_key *to)
{
    if (!packet || !to)
        return 0;
    struct flow_key key = packet->key;
    struct flow *flow = bpf_map_lookup_elem(&flows, &key);
    if (!flow || is_expired(flow, key.protocol, now_seconds()))
        return 0;
    /* The client uses the port again for another connection. */
    if (opens(packet) && flow->closing == CLOSED_BY_BOTH)
        return 0;
    if (is_dead(packet, flow))
        return 0;
    *to = (struct flow_key){
        .source = flow->source,
        .destination = flow->destination,
        .source_port = flow->source_port,
        .destination_port = flow->destination_port,
    };
    touch(&key, flow, closing_by(packet, flow));
    return 1;
}

INLINE enum origin origin_of(struct __sk_buff *skb, const struct packet *packet)
{
    if (!config.detects_pods[packet->v6 != 0])
        return OUTSIDE;
    if (!config.pods_by_device)
        return in_ranges(POD_RANGES, &packet->key.source) ? POD : OUTSIDE;
    __u32 device = skb->ifindex;
    return bpf_map_lookup_elem(&pod_devices, &device) ? POD : OUTSIDE;
}

INLINE struct frontend *frontend_of(const struct packet *packet, int by_node)
{
    struct frontend_key key = {
        .address = packet->key.destination,
        .port = packet->key.destination_port,
        .protocol = packet->key.protocol,
    };
    return packet->has_ports ? find_frontend(&key, by_node) : 0;
}

/*
 * Completes the flow of a new connection, which has its destination already, and remembers it. `to`
 * says how the first packet leaves. Fails when no port is free.
 */
FUNCTION int begin_flow(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
                        int masquerade, struct flow_key *to)
{
    if (!packet || !flow || !to)
        return 0;
    *to = (struct flow_key){
        .destination = flow->destination,
        .destination_port = flow->destination_port,
    };
    if (masquerade)
        masquerade = own_address(skb, packet, to, &flow->source);
    if (!masquerade)
        flow->source = packet->key.source;
    if (!remember(&packet->key, flow, masquerade))
        return 0;
    to->source = flow->source;
    to->source_port = flow->source_port;
    return 1;
}

/* What the plan says about a packet that belongs to no known connection; FORWARD: as `to`. */
FUNCTION int begin(struct __sk_buff *skb, const struct packet *packet, struct flow_key *to)
{
    if (!packet || !to)
        return PASS;
    /* Most packets by far: those of connections that are none of ours. */
    int goes_on = packet->key.protocol == IPPROTO_TCP && !opens(packet);
    if (goes_on && !in_ranges(SERVICE_RANGES, &packet->key.destination))
        return PASS;
    struct frontend *frontend = frontend_of(packet, 0);
    if (!frontend)
        return unclaimed(&packet->key.destination);
    if (frontend->sources && !in_ranges(frontend->sources, &packet->key.source))
        return DROP;
    struct choice *choice = &frontend->by_origin[origin_of(skb, packet)];
    if (choice->action != FORWARD)
        return choice->action;
    /*
     * A TCP connection that began before: conntrack may know it, from a time when the stack
     * translated the node's services.
     */
    if (goes_on)
        return PASS;
    struct endpoint target = {};
    if (!choose_target(frontend, choice, &packet->key.source, &target))
        return DROP;
    struct flow flow = {
        .destination = target.address,
        .destination_port = target.port,
        .service_port = frontend->service_port,
        .seen = now_seconds(),
    };
    /* A pod that reaches itself would answer itself directly. */
    int masquerade = choice->masquerade || same_address(&target.address, &packet->key.source);
    return begin_flow(skb, packet, &flow, masquerade, to) ? FORWARD : DROP;
}

/* A frame that came in through a device, whose link-layer headers have a length of `l3`. */
INLINE int packet_arrives(struct __sk_buff *skb, __u16 l3)
{
    struct packet packet = {.l3 = l3};
    struct flow_key to = {};
    if (!read_packet(skb, &packet))
        return NEXT;
    if (packet.has_ports) {
        if (follow_flow(&packet, &to))
            return send_on(skb, &packet, &to);
    } else if (translate_error(skb, &packet, &to)) {
        return send_error_on(skb, &packet, &to);
    }
    /* What a switch floods is for another host. */
    if (skb->pkt_type != TO_THIS_HOST)
        return NEXT;
    switch (begin(skb, &packet, &to)) {
    case FORWARD:
        return send_on(skb, &packet, &to);
    case REJECT:
        return refuse(skb, &packet);
    case DROP:
        return SHOT;
    default:
        return NEXT;
    }
}

/* What the plan says about a packet of the node itself that no socket program redirected. */
INLINE int may_leave(const struct packet *packet)
{
    /* Answers of servers on the node. */
    if (packet->key.protocol == IPPROTO_TCP && !opens(packet))
        return 1;
    struct frontend *frontend = frontend_of(packet, 1);
    if (!frontend)
        return unclaimed(&packet->key.destination) == PASS;
    if (frontend->sources && !in_ranges(frontend->sources, &packet->key.source))
        return 0;
    return frontend->by_origin[NODE].action == FORWARD;
}

/* A frame that goes out through a device. Only those that the node made itself are for us. */
INLINE int packet_leaves(struct __sk_buff *skb, __u16 l3)
{
    struct packet packet = {.l3 = l3};
    struct flow_key to = {};
    if (skb->ingress_ifindex || !read_packet(skb, &packet))
        return NEXT;
    if (packet.has_ports) {
        if (follow_flow(&packet, &to)) {
            rewrite(skb, &packet, &to);
            return NEXT;
        }
    } else if (translate_error(skb, &packet, &to)) {
        rewrite_error(skb, &packet, &to);
        return NEXT;
    }
    return may_leave(&packet) ? NEXT : SHOT;
}
