//! The local side: everything that runs beside a backend on a node.

use std::sync::Arc;

use anyhow::Context;

use crate::cli::{LocalArgs, NftArgs};
use crate::signals::Shutdown;

use super::source::Source;

/// The name of this node: as told, or the host's.
pub(super) fn name(local: &LocalArgs) -> anyhow::Result<Arc<str>> {
    if let Some(name) = &local.node_name {
        return Ok(name.trim().to_ascii_lowercase().into());
    }
    let uname = rustix::system::uname();
    let name = uname.nodename().to_str().context("the host name is no text; give --node-name")?;
    Ok(name.to_ascii_lowercase().into())
}

pub(super) async fn dry_run(
    _source: Source,
    _local: &LocalArgs,
    _nft: &NftArgs,
    _shutdown: Shutdown,
) -> anyhow::Result<()> {
    Ok(())
}

pub(super) async fn run(
    _source: Source,
    _local: LocalArgs,
    _nft: NftArgs,
    _shutdown: Shutdown,
) -> anyhow::Result<()> {
    Ok(())
}
