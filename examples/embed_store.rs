//! The watcher and the store in a program of one's own: prints every service that changes. `embed_store
//! [KUBECONFIG]`; without it KUBECONFIG or a pod's service account says where the API server is.
#![expect(clippy::print_stdout, reason = "it prints what it is told")]

use kpng_core::store::Store;
use kpng_kube::{Config, NodeScope, Selection, Watcher};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config {
        kubeconfig: std::env::args_os().nth(1).map(Into::into),
        server: None,
        service_proxy_name: None,
        selection: Selection::default(),
        nodes: NodeScope::All,
    };
    let (writer, store) = Store::new();
    let watcher = Watcher::new(config, writer)?;
    let mut reader = store.reader();
    let print = async {
        while let Some(update) = reader.next().await {
            for (key, change) in &update.services {
                match &change.new {
                    Some(state) => println!("{key}: {} slices", state.slices.len()),
                    None => println!("{key} is gone"),
                }
            }
        }
    };
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    let (watched, ()) = tokio::join!(watcher.run(interrupted), print);
    Ok(watched?)
}
