//! Who may see what.

use std::sync::Arc;

use tonic::Status;

use crate::tls::PeerCertificate;

/// Who may see what, on servers that know their clients by certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    /// The common names of those that may watch everything: relays, observers. Everybody else is a
    /// node (`system:node:NAME` or `NAME`, as the kubelet's certificates have it), and gets the local
    /// view of that node only.
    pub global: Vec<String>,
}

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    pub(super) certificate: Option<Arc<PeerCertificate>>,
}

impl Peer {
    fn common_name(&self) -> Option<&str> {
        self.certificate.as_ref()?.common_name.as_deref()
    }
}

impl Authorization {
    /// Whether `peer` may see the local view of `node`.
    pub(super) fn check_node(&self, peer: &Peer, node: &str) -> Result<(), Status> {
        let name = self.name(peer)?;
        let own = name.strip_prefix("system:node:").unwrap_or(name);
        if own == node || self.is_global(name) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "the certificate of {name:?} does not allow to watch as node {node:?}, only as {own:?}"
        )))
    }

    /// Whether `peer` may see everything.
    pub(super) fn check_global(&self, peer: &Peer) -> Result<(), Status> {
        let name = self.name(peer)?;
        if self.is_global(name) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "the certificate of {name:?} does not allow to watch the global sets; the server's \
             --authorize-global names those that do"
        )))
    }

    fn name<'a>(&self, peer: &'a Peer) -> Result<&'a str, Status> {
        let nameless =
            || Status::unauthenticated("a client certificate with a common name is needed");
        peer.common_name().filter(|name| !name.is_empty()).ok_or_else(nameless)
    }

    fn is_global(&self, name: &str) -> bool {
        self.global.iter().any(|other| other == name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn peer(name: Option<&str>) -> Peer {
        let certificate = PeerCertificate {
            common_name: name.map(str::to_owned),
            not_after: SystemTime::UNIX_EPOCH,
        };
        Peer { certificate: Some(Arc::new(certificate)) }
    }

    #[test]
    fn a_node_sees_itself_and_a_relay_everything() {
        let rules = Authorization { global: vec!["relay".into()] };
        for (name, node, local, global) in [
            (Some("system:node:a"), "a", true, false),
            (Some("a"), "a", true, false),
            (Some("system:node:a"), "b", false, false),
            (Some("system:node:a"), "", false, false),
            (Some("a"), "system:node:a", false, false),
            (Some("relay"), "b", true, true),
            (Some("system:node:relay"), "b", false, false),
            (Some(""), "", false, false),
            (None, "a", false, false),
        ] {
            let peer = peer(name);
            assert_eq!(rules.check_node(&peer, node).is_ok(), local, "{name:?} as {node:?}");
            assert_eq!(rules.check_global(&peer).is_ok(), global, "{name:?}");
        }
        assert!(rules.check_node(&Peer::default(), "").is_err(), "no certificate");
    }
}
