/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Keys and values of all maps. `src/layout.rs` writes the same bytes; ports are in network order.
 *
 * Tables are what the plan says, and are written by user space only. States are what programs
 * remember, and outlive tables: they are kept when programs are replaced.
 */
#pragma once

#include "kernel.h"

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d. */
struct address {
    __u32 word[4];
};

struct endpoint {
    struct address address;
    __u16 port;
    __u16 zero;
};

/*
 * A frontend by its destination. A node port has the unspecified address of its family; a cluster
 * IP that is closed but for its ports has port 0 and protocol 0.
 */
struct frontend_key {
    struct address address;
    __u16 port;
    __u8 protocol;
    __u8 zero;
};

enum action { PASS, FORWARD, REJECT, DROP };
enum origin { POD, NODE, OUTSIDE };

struct choice {
    __u32 pool;
    __u16 count; /* of targets in the pool */
    __u8 action;
    __u8 masquerade;
};

struct frontend {
    struct choice by_origin[3];
    __u64 service_port;    /* identity of the service port and family, the same after a restart */
    __u32 affinity_seconds; /* 0: none */
    __u32 sources;          /* set of ranges that may come in; 0: all */
};

struct target_key {
    __u32 pool;
    __u32 index;
};

/*
 * Whether an endpoint belongs to a set: to a pool with affinity (its number), or to those that a
 * UDP service port may still use (its identity, which has the highest bit set).
 */
struct member_key {
    __u64 set;
    struct endpoint endpoint;
    __u32 zero;
};

/* Sets of address ranges, for the longest-prefix trie. */
struct range_key {
    __u32 prefix_length; /* in bits, of what follows */
    __u32 set;
    struct address address;
};
#define POD_RANGES 1
#define SERVICE_RANGES 2

/* What is known of an address of the node. */
#define NODE_PORTS 1 /* node ports are served there */
#define ONLY_NODE 2  /* for the node's own sockets only: 127.0.0.1 */

/* A client of a service port with affinity. */
struct client_key {
    __u64 service_port;
    struct address client;
};

struct sticky {
    __u64 used; /* ns of the monotonic clock */
    struct endpoint target;
    __u32 zero;
};

/* Where a socket sends to, and the frontend that the application believes to talk to. */
struct peer_key {
    __u64 socket;
    struct endpoint target;
    __u32 zero;
};

/* One direction of a translated connection: the packet as it arrives. */
struct flow_key {
    struct address source;
    struct address destination;
    __u16 source_port;
    __u16 destination_port;
    __u8 protocol;
    __u8 zero[3];
};

/* How the packet leaves. */
struct flow {
    struct address source;
    struct address destination;
    __u64 service_port; /* 0: none */
    __u16 source_port;
    __u16 destination_port;
    __u32 seen; /* s of the monotonic clock */
    __u8 closing;   /* see flow.h */
    __u8 answered;  /* an answer was seen */
    __u8 is_answer; /* the direction from the target to the client */
    __u8 zero[5];
};

/* All parts of a fragmented packet, and the ports that only the first one has. */
struct fragment_key {
    struct address source;
    struct address destination;
    __u32 id;
    __u8 protocol;
    __u8 zero[3];
};

struct fragment_ports {
    __u16 source_port;
    __u16 destination_port;
};

/* What does not change as long as programs are not replaced. */
struct config {
    __u64 node_netns; /* cookie of the node's network namespace */
    struct address node[2]; /* the node's primary addresses, by family */
    __u16 snat_first; /* ports that masqueraded connections use, in host order */
    __u16 snat_count;
    __u8 detects_pods[2]; /* by family: pods can be told from others */
    __u8 pods_by_device;  /* by the device that a packet comes in through, not by its source */
    __u8 zero;
};
