//! A node with pods, and a state file with one service of them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use kpng_testkit::network::{Host, Network, Outcome, Topology};

/// A state with one service whose endpoints are these pods.
pub(crate) fn state(pods: &[&str]) -> String {
    let endpoints: String = pods
        .iter()
        .map(|pod| {
            format!("    - {{addresses: [{pod}], nodeName: node-a, conditions: {{ready: true}}}}\n")
        })
        .collect();
    let endpoints = if pods.is_empty() { "    []\n".to_owned() } else { endpoints };
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-a}}\n\
         status: {{addresses: [{{type: InternalIP, address: 192.168.0.2}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  type: NodePort\n  clusterIP: 172.30.0.1\n  clusterIPs: [172.30.0.1]\n  \
         ports: [{{name: http, port: 80, nodePort: 30080}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

pub(crate) fn network() -> Option<Network> {
    let network = Network::new(Topology { pods: 3, remote_pods: 0 })?;
    network.pods.iter().for_each(|pod| pod.serve(&[8080]));
    Some(network)
}

pub(crate) fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

pub(crate) fn ask(from: &Host) -> Outcome {
    let vip: IpAddr = [172, 30, 0, 1].into();
    from.tcp(None, SocketAddr::new(vip, 80))
}

pub(crate) fn answered_by(from: &Host, pod: &str) -> bool {
    ask(from).answered_by() == Some(pod)
}
