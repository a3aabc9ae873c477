//! The nftables backend in a program of one's own: `embed_nft [FILE]`, as root. The rules stay when it
//! ends; `kpng file to-local to-nft --cleanup` removes them.

use std::net::IpAddr;

use kpng_core::backend::{Backend, BackendError};
use kpng_core::plan::{NodeFacts, Planner, PodDetection};
use kpng_core::store::Store;
use kpng_nft::{Config, Nft};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BackendError> {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "examples/cluster.yaml".into());
    let node: IpAddr = "192.168.0.2".parse()?;
    let facts = NodeFacts {
        pods: PodDetection::Cidrs(vec!["10.180.0.0/16".parse()?]),
        primary_ips: vec![node],
        node_port_addresses: [node].into(),
        ..NodeFacts::default()
    };
    let mut planner = Planner::new("node-a", facts);
    let mut nft = Nft::open(Config::default())?;
    let (mut writer, store) = Store::new();
    let options = kpng_file::Options::default();
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    let file = kpng_file::run(path.as_ref(), &options, &mut writer, interrupted);
    let program = async {
        let mut reader = store.reader();
        let mut known = false;
        while let Some(update) = reader.next().await {
            let changes = planner.update(&update);
            // The first time it is not known what the kernel holds: everything is compared.
            let changed = known.then_some(&*changes.services);
            nft.sync(planner.plan(), changed)?;
            known = true;
        }
        Ok(())
    };
    tokio::select! {
        ended = file => Ok(ended?),
        ended = program => ended,
    }
}
