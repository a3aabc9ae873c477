//! The backends that this binary has: one table, no registration.

use anyhow::Context;
use kpng_core::Backend;
use kpng_nft::{Config, Nft};

use crate::cli::{LocalArgs, NftArgs};

/// The nftables backend, as the flags say.
///
/// # Errors
/// When the kernel has no nf_tables, or this process may not use it.
pub fn nft(local: &LocalArgs, args: &NftArgs) -> anyhow::Result<Nft> {
    open_nft(nft_config(local, args))
}

/// The configuration of the nftables backend, as the flags say.
pub fn nft_config(local: &LocalArgs, args: &NftArgs) -> Config {
    Config {
        masquerade_bit: args.masquerade_bit,
        conntrack_be_liberal: local.conntrack.conntrack_be_liberal,
    }
}

/// Removes everything that the nftables backend ever wrote.
///
/// # Errors
/// When something of it is left.
pub fn nft_cleanup() -> anyhow::Result<()> {
    let mut nft = open_nft(Config::default())?;
    nft.cleanup().map_err(anyhow::Error::from_boxed).context("cannot remove kpng's tables")
}

fn open_nft(config: Config) -> anyhow::Result<Nft> {
    Nft::open(config).context(
        "cannot use nf_tables: it takes root (CAP_NET_ADMIN) and a kernel with CONFIG_NF_TABLES",
    )
}
