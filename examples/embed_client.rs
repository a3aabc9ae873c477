//! A client of kpng's API in a program of one's own: prints the services that change, with all their
//! endpoints, as a node sees them. `embed_client [ADDRESS [NODE]]`
#![expect(clippy::print_stdout, reason = "it prints what it is told")]

use kpng_api::client::{Config, follow_local};
use kpng_api::tls::TlsFiles;
use kpng_core::store::Store;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().unwrap_or_else(|| "127.0.0.1:12090".to_owned()).parse()?;
    let node = arguments.next().unwrap_or_else(|| "node-a".to_owned());
    let config = Config { targets: vec![target], tls: TlsFiles::default(), server_name: None };
    let (writer, store) = Store::local();
    let interrupted = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    let follow = follow_local(config, node.into(), writer, Default::default(), interrupted);
    let print = async {
        let mut reader = store.reader();
        while let Some(update) = reader.next().await {
            for (key, change) in update.services {
                match change.new {
                    Some(state) => {
                        let addresses = state.endpoints.iter().map(|endpoint| endpoint.address);
                        println!("{key} {:?}", addresses.collect::<Vec<_>>());
                    }
                    None => println!("{key} is gone"),
                }
            }
        }
    };
    Ok(tokio::join!(follow, print).0?)
}
