//! `kpng file … to-local to-ipvs`, in a guest whose kernel has IPVS: from kube-proxy's leftovers to
//! clean-up.

use std::path::Path;
use std::time::Duration;

use kpng_testkit::guest::in_guest;
use kpng_testkit::network::Network;

use crate::example::{answered_by, network, state, write};
use crate::process::{Kpng, eventually, run, within};

const LIMIT: Duration = Duration::from_secs(300);

fn start(network: &Network, path: &Path, sink: &[&str]) -> Kpng {
    let input = format!("--input={}", path.display());
    let flags =
        ["--node-name=node-a", "--cluster-cidrs=10.0.0.0/8,fd00:180::/32", "--admin-socket="];
    Kpng::start(&network.node, &[&["file", &input, "to-local"], sink, &flags].concat())
}

#[test]
fn ipvs_takes_over_from_kube_proxy_is_repaired_and_leaves_nothing() {
    in_guest(LIMIT, || {
        let network = network().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.yaml");
        write(&path, &state(&["10.180.0.1"]));
        let node = |line: &str| run(&network.node, &line.split(' ').collect::<Vec<_>>());
        for line in [
            "ip link add kube-ipvs0 type dummy",
            "ip address add 172.30.0.1/32 dev kube-ipvs0",
            "ip address add 172.30.0.9/32 dev kube-ipvs0",
            "ipvsadm -A -t 172.30.0.1:80 -s rr",
            "ipvsadm -a -t 172.30.0.1:80 -r 10.180.0.3:8080 -m",
            "ipvsadm -A -t 172.30.0.9:80 -s rr",
            "ipvsadm -A -t 192.168.0.2:9999 -s rr",
        ] {
            node(line);
        }
        let sink = ["to-ipvs", "--replace-kube-proxy", "--scheduling-method=wlc", "--weight=7"];
        let mut kpng = start(&network, &path, &sink);
        kpng.wait_ready(&network.node);
        eventually("kube-proxy's link goes", || !node("ip link").contains("kube-ipvs0"));
        eventually("pod1 answers", || answered_by(network.pod(2), "pod1"));
        let saved = node("ipvsadm -Sn");
        assert!(saved.contains("-A -t 172.30.0.1:80 -s wlc"), "{saved}");
        assert!(saved.contains("-a -t 172.30.0.1:80 -r 10.180.0.1:8080 -m -w 7"), "{saved}");
        assert!(!saved.contains("172.30.0.9"), "{saved}");

        for change in
            ["ipvsadm -D -t 172.30.0.1:80", "ip link delete kpng-ipvs0", "nft flush ruleset"]
        {
            node(change);
            let is_back = || {
                node("nft list tables").contains("ip6 kpng-ipvs")
                    && answered_by(network.pod(2), "pod1")
            };
            assert!(within(Duration::from_secs(6), is_back), "{change}: {}", kpng.log());
        }
        write(&path, &state(&["10.180.0.2"]));
        eventually("the other pod answers", || answered_by(network.pod(3), "pod2"));
        assert!(kpng.terminate().success(), "{}", kpng.log());
        assert!(answered_by(&network.client, "pod2"), "SIGTERM leaves the data path as it is");

        // Another backend takes over, and nothing of this one is left.
        let mut nft = start(&network, &path, &["to-nft"]);
        nft.wait_ready(&network.node);
        eventually("our link goes", || !node("ip link").contains("kpng-ipvs0"));
        assert!(answered_by(network.pod(3), "pod2"));
        assert!(nft.terminate().success());
        let mut ipvs = start(&network, &path, &["to-ipvs"]);
        ipvs.wait_ready(&network.node);
        assert!(ipvs.terminate().success());
        let mut cleanup = Kpng::start(&network.node, &["cleanup"]);
        assert!(cleanup.wait().success(), "{}", cleanup.log());
        assert_eq!(node("ipvsadm -Sn").trim(), "-A -t 192.168.0.2:9999 -s rr");
        assert!(!node("ip link").contains("kpng-ipvs0"));
        assert_eq!(node("nft list tables"), "");
    });
}
