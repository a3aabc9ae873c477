//! The conformance table: states of a cluster, packets, and what must become of them.
//!
//! Every backend must pass every case, in both families. The words are explained in
//! `crate::fixture` and `crate::conformance`; the groups are those of kube-proxy's behaviour.

/// One state with its packets.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What the case shows.
    pub name: &'static str,
    /// The cluster.
    pub cluster: &'static str,
    /// Packets and outcomes.
    pub packets: &'static [&'static str],
}

/// The ports that pods must serve for [`CASES`].
pub const PORTS: &[u16] = &[53, 8080, 8081, 8082];

/// All cases.
pub const CASES: &[Case] = &[
    // Topology (KEP-2433, KEP-3015).
    Case {
        name: "all ready and hinted: only this zone's",
        cluster: "
            node zone=a
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a
              pod2 zone=b hint=b
              remote1 zone=c hint=c
              remote2 zone=a hint=a",
        packets: &["pod3 -> cluster.1:80 = pod1,remote2"],
    },
    Case {
        name: "one endpoint lacks the hint: all",
        cluster: "
            node zone=a
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a
              pod2 zone=b
              remote1 zone=c hint=c",
        packets: &["pod3 -> cluster.1:80 = pod1,pod2,remote1"],
    },
    Case {
        name: "no hint for this zone: all",
        cluster: "
            node zone=b
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a
              remote1 zone=a hint=a",
        packets: &["pod3 -> cluster.1:80 = pod1,remote1"],
    },
    Case {
        name: "a node without a zone: all",
        cluster: "
            node zone=
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a
              remote1 zone=b hint=b",
        packets: &["pod3 -> cluster.1:80 = pod1,remote1"],
    },
    Case {
        name: "an unready endpoint without a hint does not disturb",
        cluster: "
            node zone=a
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a
              pod2 zone=a notready
              remote1 zone=b hint=b",
        packets: &["pod3 -> cluster.1:80 = pod1"],
    },
    Case {
        name: "this zone's are unready: all others",
        cluster: "
            node zone=a
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a notready
              pod2 zone=b hint=b
              remote1 zone=c hint=c",
        packets: &["pod3 -> cluster.1:80 = pod2,remote1"],
    },
    Case {
        name: "several hints each",
        cluster: "
            node zone=c
            service t/zone cluster=cluster.1 port=http:80
            slice t/zone http=8080
              pod1 zone=a hint=a,b,c
              pod2 zone=b hint=b,c
              remote1 zone=c hint=b,d
              remote2 zone=c hint=c",
        packets: &["pod3 -> cluster.1:80 = pod1,pod2,remote2"],
    },
    Case {
        name: "node hints come before zone hints",
        cluster: "
            node zone=a
            service t/node cluster=cluster.1 port=http:80
            slice t/node http=8080
              pod1 hint=a nodehint=node-a
              pod2 hint=a nodehint=node-b
              remote1 hint=a nodehint=node-b
            service t/zone cluster=cluster.2 port=http:80
            slice t/zone http=8080
              pod1 hint=a nodehint=node-b
              remote1 hint=b nodehint=node-c
            service t/neither cluster=cluster.3 port=http:80
            slice t/neither http=8080
              pod1 hint=b nodehint=node-b
              remote1 hint=b nodehint=node-c
            service t/some cluster=cluster.4 port=http:80
            slice t/some http=8080
              pod1 hint=a nodehint=node-a
              pod2 hint=a
              remote1 hint=b",
        packets: &[
            "pod3 -> cluster.1:80 = pod1",
            "pod3 -> cluster.2:80 = pod1",
            "pod3 -> cluster.3:80 = pod1,remote1",
            "pod3 -> cluster.4:80 = pod1,pod2",
        ],
    },
    // Policies.
    Case {
        name: "topology does not apply to the local list",
        cluster: "
            node zone=a
            service t/both cluster=cluster.1 ext=ext.1 port=http:80 etp=Local
            slice t/both http=8080
              pod1 zone=a hint=a
              pod2 zone=b hint=b
              remote1 zone=a hint=a
              remote2 zone=b hint=b",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,remote1",
            "pod3 -> ext.1:80 = pod1,remote1",
            "node -> ext.1:80 = pod1*,remote1*",
            "client -> ext.1:80 = pod1,pod2",
        ],
    },
    Case {
        name: "internal policy Local without local endpoints drops, node ports work",
        cluster: "
            service t/internal cluster=cluster.1 port=http:80:30001 itp=Local
            slice t/internal http=8080
              remote1",
        packets: &[
            "pod3 -> cluster.1:80 = drop",
            "node -> cluster.1:80 = drop",
            "client -> cluster.1:80 = drop",
            "client -> node:30001 = remote1*",
        ],
    },
    Case {
        name: "internal policy Local with local endpoints",
        cluster: "
            service t/internal cluster=cluster.1 port=http:80 itp=Local
            slice t/internal http=8080
              pod1
              pod2
              remote1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,pod2",
            "node -> cluster.1:80 = pod1*,pod2*",
        ],
    },
    Case {
        name: "external policy of a service that is not reachable from outside is ignored",
        cluster: "
            service t/external cluster=cluster.1 port=http:80 etp=Local
            slice t/external http=8080
              remote1",
        packets: &["pod3 -> cluster.1:80 = remote1", "client -> cluster.1:80 = remote1*"],
    },
    Case {
        name: "internal policy Local without any endpoint rejects",
        cluster: "
            service t/internal cluster=cluster.1 port=http:80 itp=Local
            slice t/internal http=8080
              pod1 notready
            service t/none cluster=cluster.2 port=http:80 itp=Local",
        packets: &["pod3 -> cluster.1:80 = reject", "pod3 -> cluster.2:80 = reject"],
    },
    Case {
        name: "external policy Cluster: everything is masqueraded",
        cluster: "
            service t/web cluster=cluster.1 ext=ext.1 lb=lb.1 port=http:80:30001
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,remote1",
            "node -> cluster.1:80 = pod1*,remote1*",
            "client -> cluster.1:80 = pod1*,remote1*",
            "client -> node:30001 = pod1*,remote1*",
            "client -> ext.1:80 = pod1*,remote1*",
            "client -> lb.1:80 = pod1*,remote1*",
            "pod3 -> node:30001 = pod1*,remote1*",
            "pod3 -> ext.1:80 = pod1*,remote1*",
            "node -> node:30001 = pod1*,remote1*",
            "node -> lb.1:80 = pod1*,remote1*",
        ],
    },
    Case {
        name: "external policy Local: sources are kept, the cluster's own traffic goes anywhere",
        cluster: "
            service t/web cluster=cluster.1 ext=ext.1 lb=lb.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "client -> node:30001 = pod1",
            "client -> ext.1:80 = pod1",
            "client -> lb.1:80 = pod1",
            "pod3 -> node:30001 = pod1,remote1",
            "pod3 -> lb.1:80 = pod1,remote1",
            "node -> node:30001 = pod1*,remote1*",
            "pod3 -> cluster.1:80 = pod1,remote1",
            "client -> cluster.1:80 = pod1*,remote1*",
        ],
    },
    Case {
        name: "external policy Local without local endpoints drops, but not the cluster's own traffic",
        cluster: "
            service t/web cluster=cluster.1 ext=ext.1 lb=lb.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              remote1",
        packets: &[
            "client -> node:30001 = drop",
            "client -> ext.1:80 = drop",
            "client -> lb.1:80 = drop",
            "pod3 -> node:30001 = remote1",
            "pod3 -> lb.1:80 = remote1",
            "node -> lb.1:80 = remote1*",
            "client -> cluster.1:80 = remote1*",
        ],
    },
    Case {
        name: "without a way to detect pods",
        cluster: "
            node pods=none
            service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1
              remote1
            service t/open cluster=cluster.2 port=http:80:30002
            slice t/open http=8080
              pod1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,remote1",
            "client -> cluster.2:80 = pod1",
            "client -> node:30001 = pod1",
            "pod3 -> node:30001 = pod1",
            "client -> node:30002 = pod1*",
        ],
    },
    Case {
        name: "without a way to detect pods the node still reaches all endpoints from inside",
        cluster: "
            node pods=none
            service t/web cluster=cluster.1 ext=ext.1 lb=lb.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1
              remote1
            service t/remote cluster=cluster.2 lb=lb.2 port=http:80:30002 etp=Local itp=Local
            slice t/remote http=8080
              remote1",
        packets: &[
            "node-alt -> cluster.1:80 = pod1,remote1",
            "node-alt -> ext.1:80 = pod1*,remote1*",
            "node-alt -> lb.2:80 = remote1*",
            "node-alt -> node:30002 = remote1*",
            "pod3 -> lb.2:80 = drop",
            "pod3 -> cluster.2:80 = drop",
            "client -> node:30002 = drop",
        ],
    },
    Case {
        name: "pods detected by their interfaces",
        cluster: "
            node pods=interface
            service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,remote1",
            "node -> cluster.1:80 = pod1*,remote1*",
            "client -> cluster.1:80 = pod1*,remote1*",
            "pod3 -> lb.1:80 = pod1,remote1",
            "client -> lb.1:80 = pod1",
        ],
    },
    Case {
        name: "pods detected by their interfaces: traffic of pods elsewhere comes from outside",
        cluster: "
            node pods=interface
            service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 itp=Local etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "remote2 -> cluster.1:80 = pod1*",
            "remote2 -> lb.1:80 = pod1",
            "pod3 -> cluster.1:80 = pod1",
            "pod3 -> node:30001 = pod1,remote1",
        ],
    },
    Case {
        name: "masquerade all",
        cluster: "
            node masquerade-all
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1",
        packets: &["pod3 -> cluster.1:80 = pod1*", "client -> cluster.1:80 = pod1*"],
    },
    Case {
        name: "masquerade all is about cluster IPs",
        cluster: "
            node masquerade-all
            service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001 itp=Local etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1*",
            "pod3 -> lb.1:80 = pod1,remote1",
            "client -> lb.1:80 = pod1",
            "client -> node:30001 = pod1",
        ],
    },
    // Terminating endpoints (KEP-1669).
    Case {
        name: "terminating endpoints: the two lists are decided apart",
        cluster: "
            service t/web cluster=cluster.1 ext=ext.1 port=http:80 etp=Local
            slice t/web http=8080
              remote1
              pod1 notready
              pod2 serving-terminating
              remote2 terminating",
        packets: &["pod3 -> cluster.1:80 = remote1", "client -> ext.1:80 = pod2"],
    },
    Case {
        name: "ready endpoints come before serving and terminating ones",
        cluster: "
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1
              pod2
              pod3 serving-terminating
              remote1 notready",
        packets: &["pod3 -> cluster.1:80 = pod1,pod2"],
    },
    Case {
        name: "only serving and terminating endpoints, hints do not count",
        cluster: "
            node zone=a
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1 serving-terminating hint=b
              pod2 notready
              remote1 serving-terminating hint=b
              remote2 terminating",
        packets: &["pod3 -> cluster.1:80 = pod1,remote1"],
    },
    Case {
        name: "nothing serves: reject",
        cluster: "
            service t/web cluster=cluster.1 port=http:80:30001
            slice t/web http=8080
              pod1 terminating
              remote1 notready",
        packets: &["pod3 -> cluster.1:80 = reject", "client -> node:30001 = reject"],
    },
    Case {
        name: "terminating endpoints and policy Local",
        cluster: "
            service t/here cluster=cluster.1 ext=ext.1 port=http:80:30001 etp=Local itp=Local
            slice t/here http=8080
              pod1 serving-terminating
              pod2 terminating
              remote1
              remote2 serving-terminating
            service t/elsewhere cluster=cluster.2 ext=ext.2 port=http:80:30002 etp=Local itp=Local
            slice t/elsewhere http=8080
              pod1 terminating
              remote1 serving-terminating
            service t/nowhere cluster=cluster.3 ext=ext.3 port=http:80:30003 etp=Local itp=Local
            slice t/nowhere http=8080
              pod1 terminating
              remote1 terminating",
        packets: &[
            "pod3 -> cluster.1:80 = pod1",
            "client -> ext.1:80 = pod1",
            "pod3 -> ext.1:80 = remote1",
            "pod3 -> cluster.2:80 = drop",
            "client -> node:30002 = drop",
            "pod3 -> ext.2:80 = remote1",
            "pod3 -> cluster.3:80 = reject",
            "client -> ext.3:80 = reject",
            "client -> node:30003 = reject",
        ],
    },
    Case {
        name: "hints, terminating endpoints and policy Local together",
        cluster: "
            node zone=a
            service t/web cluster=cluster.1 ext=ext.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1 zone=b hint=b
              pod2 zone=b hint=b serving-terminating
              remote1 zone=a hint=a
              remote2 zone=a hint=a notready",
        packets: &[
            "pod3 -> cluster.1:80 = remote1",
            "node -> ext.1:80 = remote1*",
            "client -> ext.1:80 = pod1",
            "client -> node:30001 = pod1",
        ],
    },
    // Source ranges.
    Case {
        name: "source ranges guard load balancer addresses only",
        cluster: "
            service t/web cluster=cluster.41 ext=ext.1 lb=lb.1,lb.2 port=http:80:30001 ranges=client-net,node-net
            slice t/web http=8080
              pod1",
        packets: &[
            "pod3 -> cluster.41:80 = pod1",
            "client -> lb.1:80 = pod1*",
            "client -> lb.2:80 = pod1*",
            "blocked -> lb.1:80 = drop",
            "blocked -> lb.2:80 = drop",
            "blocked -> node:30001 = pod1*",
            "blocked -> ext.1:80 = pod1*",
            "pod3 -> lb.1:80 = drop",
            "node -> lb.1:80 = pod1*",
        ],
    },
    Case {
        name: "source ranges and policy Local",
        cluster: "
            service t/web cluster=cluster.41 lb=lb.1 port=http:80 ranges=client-net etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "client -> lb.1:80 = pod1",
            "blocked -> lb.1:80 = drop",
            "pod3 -> lb.1:80 = drop",
            "node -> lb.1:80 = drop",
        ],
    },
    Case {
        name: "source ranges with the node in them, policy Local",
        cluster: "
            service t/web cluster=cluster.1 lb=lb.1 port=http:80 ranges=node-net etp=Local
            slice t/web http=8080
              pod1
              remote1",
        packets: &[
            "node -> lb.1:80 = pod1*,remote1*",
            "client -> lb.1:80 = drop",
            "pod3 -> lb.1:80 = drop",
        ],
    },
    Case {
        name: "source ranges on the node's own address leave its node ports open",
        cluster: "
            service t/web cluster=cluster.1 lb=node port=http:80:30001 ranges=client-net
            slice t/web http=8080
              pod1",
        packets: &[
            "client -> node:80 = pod1*",
            "blocked -> node:80 = drop",
            "pod3 -> node:80 = drop",
            "node -> node:80 = drop",
            "blocked -> node:30001 = pod1*",
        ],
    },
    Case {
        name: "source ranges and no endpoints: who may come in is refused, others are dropped",
        cluster: "
            service t/web cluster=cluster.41 lb=lb.1 port=http:80 ranges=client-net",
        packets: &["client -> lb.1:80 = reject", "blocked -> lb.1:80 = drop"],
    },
    Case {
        name: "a list that admits nobody closes the address",
        cluster: "
            service t/web cluster=cluster.41 lb=lb.1 port=http:80 ranges=nobody
            slice t/web http=8080
              pod1",
        packets: &["client -> lb.1:80 = drop", "pod3 -> cluster.41:80 = pod1"],
    },
    // No endpoints, unknown ports, hairpin, protocols.
    Case {
        name: "no endpoints: every frontend rejects",
        cluster: "
            service t/none cluster=cluster.1 ext=ext.1 lb=lb.1 port=http:80:30001 port=dns:53/UDP:30053 port=s:53/SCTP:30053",
        packets: &[
            "pod3 -> cluster.1:80 = reject",
            "node -> cluster.1:80 = reject",
            "client -> cluster.1:80 = reject",
            "pod3 -> ext.1:80 = reject",
            "client -> ext.1:80 = reject",
            "client -> lb.1:80 = reject",
            "client -> node:30001 = reject",
            "node -> node:30001 = reject",
            "pod3 -> cluster.1:53/UDP = reject",
            "client -> node:30053/UDP = reject",
            "node -> cluster.1:53/UDP = reject",
            "client -> ext.1:53/SCTP = reject",
        ],
    },
    Case {
        name: "a cluster IP is closed but for its ports; unallocated ones lead nowhere",
        cluster: "
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1",
        packets: &[
            "pod3 -> cluster.1:80/UDP = reject",
            "pod3 -> cluster.1:81 = reject",
            "node -> cluster.1:81 = reject",
            "client -> cluster.1:81 = reject",
            "pod3 -> cluster.50:80 = drop",
            "node -> cluster.50:80 = drop",
            "client -> cluster.50:80/UDP = drop",
        ],
    },
    Case {
        name: "hairpin",
        cluster: "
            service t/web cluster=cluster.1 lb=lb.1 port=http:80:30001
            slice t/web http=8080
              pod1
            service t/two cluster=cluster.2 port=http:80
            slice t/two http=8080
              pod1
              pod2
            service t/local cluster=cluster.3 lb=lb.3 port=http:80 etp=Local
            slice t/local http=8080
              pod1",
        packets: &[
            "pod1 -> cluster.1:80 = pod1*",
            "pod1 -> cluster.2:80 = pod1*,pod2",
            "pod1 -> node:30001 = pod1*",
            "pod1 -> lb.3:80 = pod1*",
        ],
    },
    Case {
        name: "hairpin under policy Local, and by other protocols",
        cluster: "
            service t/local cluster=cluster.1 ext=ext.1 port=http:80:30001 etp=Local itp=Local
            slice t/local http=8080
              pod1
            service t/others cluster=cluster.2 port=u:80/UDP:30002 port=s:80/SCTP:30002
            slice t/others u=8080/UDP s=8080/SCTP
              pod1",
        packets: &[
            "pod1 -> cluster.1:80 = pod1*",
            "pod1 -> ext.1:80 = pod1*",
            "pod1 -> node:30001 = pod1*",
            "pod3 -> node:30001 = pod1",
            "pod1 -> cluster.2:80/UDP = pod1*",
            "pod1 -> cluster.2:80/SCTP = pod1*",
            "pod1 -> node:30002/UDP = pod1*",
        ],
    },
    Case {
        name: "a target port that is somebody's node port, a service port that is its own node port",
        cluster: "
            service t/web cluster=cluster.1 ext=ext.1 port=http:30001:30001 port=other:80:30002
            slice t/web http=8080 other=8081
              pod1
            service t/none cluster=cluster.2 port=http:8080:30080",
        packets: &[
            "pod3 -> cluster.1:30001 = pod1",
            "client -> node:30001 = pod1*",
            "client -> ext.1:30001 = pod1*",
            "client -> ext.1:30002 = pass",
            "pod3 -> cluster.1:30002 = reject",
            "client -> node:30080 = reject",
        ],
    },
    Case {
        name: "three protocols on one port, each with its own target",
        cluster: "
            service t/dns cluster=cluster.1 port=tcp:53/TCP:30053 port=udp:53/UDP:30053 port=sctp:53/SCTP:30053
            slice t/dns tcp=8080/TCP
              pod1
            slice t/dns udp=8081/UDP
              pod2
            slice t/dns sctp=8082/SCTP
              remote1",
        packets: &[
            "pod3 -> cluster.1:53/TCP = pod1",
            "pod3 -> cluster.1:53/UDP = pod2",
            "pod3 -> cluster.1:53/SCTP = remote1",
            "client -> node:30053/TCP = pod1*",
            "client -> node:30053/UDP = pod2*",
            "client -> node:30053/SCTP = remote1*",
        ],
    },
    // Node ports and load balancer modes.
    Case {
        name: "node ports are on the primary address",
        cluster: "
            service t/web cluster=cluster.1 port=http:80:30001
            slice t/web http=8080
              pod1",
        packets: &["client -> node:30001 = pod1*", "client -> node-alt:30001 = pass"],
    },
    Case {
        name: "node ports on all addresses",
        cluster: "
            node nodeports=all
            service t/web cluster=cluster.1 port=http:80:30001
            slice t/web http=8080
              pod1",
        packets: &["client -> node:30001 = pod1*", "client -> node-alt:30001 = pod1*"],
    },
    Case {
        name: "an external address that is the node's comes before node ports, also when it refuses",
        cluster: "
            service t/vip cluster=cluster.1 ext=node port=http:30001
            service t/web cluster=cluster.2 port=http:80:30001 port=other:81:30002
            slice t/web http=8080 other=8081
              pod1",
        packets: &[
            "client -> node:30001 = reject",
            "node -> node:30001 = reject",
            "client -> node:30002 = pod1*",
        ],
    },
    Case {
        name: "load balancer and external addresses that are the node's",
        cluster: "
            service t/web cluster=cluster.1 lb=node ext=node-alt port=http:80:30001
            slice t/web http=8080
              pod1
              remote1
            service t/local cluster=cluster.2 lb=node ext=node-alt port=http:81:30002 etp=Local
            slice t/local http=8080
              pod1
              remote1
            service t/remote cluster=cluster.3 lb=node port=http:82:30003 etp=Local
            slice t/remote http=8080
              remote1
            service t/none cluster=cluster.4 lb=node port=http:83:30004",
        packets: &[
            "client -> node:80 = pod1*,remote1*",
            "client -> node-alt:80 = pod1*,remote1*",
            "node -> node:80 = pod1*,remote1*",
            "client -> node:81 = pod1",
            "client -> node-alt:81 = pod1",
            "pod3 -> node:81 = pod1,remote1",
            "node -> node:81 = pod1*,remote1*",
            "client -> node:82 = drop",
            "pod3 -> node:82 = remote1",
            "client -> node:83 = reject",
            "client -> node:8080 = pass",
        ],
    },
    Case {
        name: "node ports on all addresses, policy Local",
        cluster: "
            node nodeports=all
            service t/web cluster=cluster.1 port=http:80:30001 etp=Local
            slice t/web http=8080
              pod1
              remote1
            service t/none cluster=cluster.2 port=http:80:30002",
        packets: &[
            "client -> node-alt:30001 = pod1",
            "pod3 -> node-alt:30001 = pod1,remote1",
            "node -> node-alt:30001 = pod1*,remote1*",
            "client -> node-alt:30002 = reject",
            "node -> node-alt:30002 = reject",
        ],
    },
    Case {
        name: "an address in proxy mode is left alone",
        cluster: "
            service t/web cluster=cluster.1 proxy-lb=lb.1 lb=lb.2 port=http:80
            slice t/web http=8080
              pod1",
        packets: &["client -> lb.1:80 = pass", "client -> lb.2:80 = pod1*"],
    },
    Case {
        name: "node ports on localhost",
        cluster: "
            node localhost=yes
            service t/web cluster=cluster.1 port=http:80:30001 port=dns:53/UDP:30053
            slice t/web http=8080 dns=53/UDP
              pod1
              remote1
            service t/none cluster=cluster.2 port=http:80:30002",
        packets: &[
            "node -> localhost:30001 = pod1*,remote1*",
            "node -> localhost:30053/UDP = pod1*,remote1*",
            "node -> localhost:30002 = reject",
        ],
    },
    // Object tracking.
    Case {
        name: "the same address and port in two slices is one endpoint, the one that is not terminating",
        cluster: "
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1 serving-terminating
              pod2
            slice t/web http=8080
              pod1",
        packets: &["pod3 -> cluster.1:80 = pod1,pod2"],
    },
    Case {
        name: "an address in two slices: a new pod that is not ready hides the terminating one",
        cluster: "
            service t/web cluster=cluster.1 port=http:80 port=other:81
            slice t/web http=8080
              pod1 notready
            slice t/web http=8080 other=8081
              pod1 serving-terminating
              pod2 serving-terminating",
        packets: &["pod3 -> cluster.1:80 = pod2", "pod3 -> cluster.1:81 = pod1,pod2"],
    },
    Case {
        name: "slices with different target ports",
        cluster: "
            service t/web cluster=cluster.1 port=http:80 port=other:81
            slice t/web http=8080
              pod1
            slice t/web http=8081 unknown=1234
              pod2",
        packets: &[
            "pod3 -> cluster.1:80 = pod1,pod2",
            "pod3 -> cluster.1:81 = reject",
        ],
    },
    Case {
        name: "port names and protocols that only one side knows",
        cluster: "
            service t/web cluster=cluster.1 port=a:80:30001 port=b:81:30002 port=c:82/UDP
            slice t/web a=8080 c=8081
              pod1
            slice t/web b=8081/UDP
              pod2
            service t/unnamed cluster=cluster.2 port=:80
            slice t/unnamed =8080
              pod1
            service t/named cluster=cluster.3 port=:80
            slice t/named x=8080
              pod1",
        packets: &[
            "pod3 -> cluster.1:80 = pod1",
            "pod3 -> cluster.1:81 = reject",
            "pod3 -> cluster.1:82/UDP = reject",
            "client -> node:30002 = reject",
            "pod3 -> cluster.2:80 = pod1",
            "pod3 -> cluster.3:80 = reject",
        ],
    },
    Case {
        name: "endpoints of one family only",
        cluster: "
            service t/web cluster=cluster.1 port=http:80:30001
            slice t/web http=8080
              pod1 v4
              pod2 v6
            service t/four cluster4=cluster.2 port=http:80:30002
            slice t/four http=8080
              pod1",
        packets: &[],
    },
    Case {
        name: "affinity keeps a client with one of the endpoints",
        cluster: "
            service t/sticky cluster=cluster.1 port=http:80:30001 affinity=10800
            slice t/sticky http=8080
              pod1
            service t/local cluster=cluster.2 lb=lb.2 port=http:80 affinity=10 etp=Local
            slice t/local http=8080
              pod2",
        packets: &[
            "pod3 -> cluster.1:80 = pod1",
            "client -> node:30001 = pod1*",
            "client -> lb.2:80 = pod2",
            "node -> cluster.2:80 = pod2*",
        ],
    },
    Case {
        name: "many endpoints",
        cluster: "
            service t/web cluster=cluster.1 port=http:80
            slice t/web http=8080
              pod1
              pod2
              pod3
              pod4
              remote1
              remote2",
        packets: &["client -> cluster.1:80 = pod1*,pod2*,pod3*,pod4*,remote1*,remote2*"],
    },
    Case { name: "an empty cluster", cluster: "", packets: &[
        "pod3 -> cluster.1:80 = drop",
        "client -> node:30001 = pass",
    ] },
];
