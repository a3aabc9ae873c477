// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs of kpng's eBPF backend: one object, so maps are shared without further ado.
 *
 *   socket.h  services at sockets            wire.h    services in packets
 *   choose.h  frontend, action and target    flow.h    translated connections
 *   maps.h, types.h  what user space writes  kernel.h  what the kernel offers
 *
 * User space loads the object, sets `config` (see types.h), writes tables, and attaches the programs:
 * those at sockets to a control group, those of ingress to devices but the loopback, those of egress to
 * all devices.
 */
#include "socket.h"
#include "wire.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * The verifier wants fields of a socket to be read through the pointer that it knows, which clang
 * would move to the one field that it needs. So all are read, at once.
 */
#define FIELD(sock, name) (*(const volatile __u32 *)&(sock)->name)

INLINE void read_socket(struct bpf_sock_addr *ctx, struct request *r)
{
    struct bpf_sock *sock = ctx->sk;
    r->protocol = ctx->protocol;
    r->port = ctx->user_port;
    r->by_node = bpf_get_netns_cookie(ctx) == config.node_netns;
    if (!sock)
        return;
    __u32 v4 = FIELD(sock, src_ip4);
    r->source.word[0] = FIELD(sock, src_ip6[0]);
    r->source.word[1] = FIELD(sock, src_ip6[1]);
    r->source.word[2] = FIELD(sock, src_ip6[2]);
    r->source.word[3] = FIELD(sock, src_ip6[3]);
    r->source_port = htons(FIELD(sock, src_port));
    if (ctx->family == AF_INET)
        r->source = from_v4(v4);
}

INLINE struct address user_v6(struct bpf_sock_addr *ctx)
{
    return (struct address){
        {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}};
}

INLINE void set_user_v6(struct bpf_sock_addr *ctx, const struct endpoint *to)
{
    ctx->user_ip6[0] = to->address.word[0];
    ctx->user_ip6[1] = to->address.word[1];
    ctx->user_ip6[2] = to->address.word[2];
    ctx->user_ip6[3] = to->address.word[3];
    ctx->user_port = to->port;
}

INLINE void set_user_v4(struct bpf_sock_addr *ctx, const struct endpoint *to)
{
    ctx->user_ip4 = to->address.word[3];
    ctx->user_port = to->port;
}

/* Sends a socket or a datagram where the plan says. Returns 0 to refuse it. */
INLINE int send_to(struct bpf_sock_addr *ctx, int v4, int connects)
{
    struct request r = {.connects = connects};
    if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
        return 1;
    read_socket(ctx, &r);
    r.destination = v4 ? from_v4(ctx->user_ip4) : user_v6(ctx);
    struct endpoint target = {};
    switch (decide(ctx, &r, &target)) {
    case LEAVE:
        return 1;
    case REFUSE:
        bpf_set_retval(-ECONNREFUSED);
        return 0;
    case REWRITE:
        break;
    }
    remember_peer(ctx, &r, &target);
    if (v4)
        set_user_v4(ctx, &target);
    else
        set_user_v6(ctx, &target);
    return 1;
}

/* Shows the application whom it believes to talk to. */
INLINE int show_peer(struct bpf_sock_addr *ctx, int v4)
{
    struct endpoint seen = {
        .address = v4 ? from_v4(ctx->user_ip4) : user_v6(ctx),
        .port = ctx->user_port,
    };
    struct endpoint *peer = believed_peer(ctx, &seen);
    if (!peer)
        return 1;
    if (v4)
        set_user_v4(ctx, peer);
    else
        set_user_v6(ctx, peer);
    return 1;
}

SEC("cgroup/connect4") int kpng_connect4(struct bpf_sock_addr *ctx) { return send_to(ctx, 1, 1); }
SEC("cgroup/connect6") int kpng_connect6(struct bpf_sock_addr *ctx) { return send_to(ctx, 0, 1); }
SEC("cgroup/sendmsg4") int kpng_sendmsg4(struct bpf_sock_addr *ctx) { return send_to(ctx, 1, 0); }
SEC("cgroup/sendmsg6") int kpng_sendmsg6(struct bpf_sock_addr *ctx) { return send_to(ctx, 0, 0); }
SEC("cgroup/recvmsg4") int kpng_recvmsg4(struct bpf_sock_addr *ctx) { return show_peer(ctx, 1); }
SEC("cgroup/recvmsg6") int kpng_recvmsg6(struct bpf_sock_addr *ctx) { return show_peer(ctx, 0); }
SEC("cgroup/getpeername4") int kpng_peername4(struct bpf_sock_addr *ctx) { return show_peer(ctx, 1); }
SEC("cgroup/getpeername6") int kpng_peername6(struct bpf_sock_addr *ctx) { return show_peer(ctx, 0); }

/* Most devices are Ethernet. Tunnels often have packets without anything before the IP header. */
SEC("classifier") int kpng_ingress(struct __sk_buff *skb) { return packet_arrives(skb, ETH_HLEN); }
SEC("classifier") int kpng_egress(struct __sk_buff *skb) { return packet_leaves(skb, ETH_HLEN); }
SEC("classifier") int kpng_ip_ingress(struct __sk_buff *skb) { return packet_arrives(skb, 0); }
SEC("classifier") int kpng_ip_egress(struct __sk_buff *skb) { return packet_leaves(skb, 0); }
