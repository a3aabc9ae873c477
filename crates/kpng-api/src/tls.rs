//! TLS at both ends: PEM files in, rustls configurations out.
//!
//! Files are looked at again and again, since certificates are renewed while we run. A set of files
//! that cannot be used never replaces one that can.

mod follow;
mod peer;
mod pem;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

pub use follow::ServerTls;
pub use peer::PeerCertificate;

use crate::error::Error;
use pem::{Contents, KeyPair};

/// What HTTP/2 is called in a TLS handshake (RFC 7301).
const ALPN: &[u8] = b"h2";

/// The files that TLS is made of, all PEM; the flags `--…-tls-key`, `--…-tls-crt` and `--…-tls-ca`.
/// TLS is used when any of them is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The private key.
    pub key: Option<PathBuf>,
    /// The certificate of that key, with any intermediate ones after it.
    pub cert: Option<PathBuf>,
    /// Certificates that are trusted to sign those of peers.
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// TLS shall be used.
    pub fn is_set(&self) -> bool {
        self.key.is_some() || self.cert.is_some() || self.ca.is_some()
    }
}

/// Which of [`TlsFiles`] is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The private key.
    Key,
    /// The certificate.
    Cert,
    /// The certificates of those who sign.
    Ca,
}

impl fmt::Display for TlsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "TLS key",
            Self::Cert => "TLS certificate",
            Self::Ca => "TLS CA",
        })
    }
}

/// The configuration of a client: it trusts the CA, or those of the system if none is given, and
/// shows its certificate, if it has one, to servers that ask.
///
/// Reads the files, so make one for every connection.
///
/// # Errors
/// When a file is missing or cannot be used, or the system trusts nobody.
pub fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, Error> {
    let contents = Contents::read(files)?;
    let pair = contents.key_pair()?;
    let roots = match contents.roots()? {
        Some(roots) => roots,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(KeyPair { chain, key, files }) => {
            builder.with_client_auth_cert(chain, key).map_err(|source| files.error(source))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// The configuration of a server, and until when its certificate is valid, if that can be told.
///
/// It shows its certificate, and with a CA wants one of the client.
fn server_config(contents: &Contents) -> Result<(ServerConfig, Option<SystemTime>), Error> {
    let pair = contents.key_pair()?;
    let KeyPair { chain, key, files } =
        pair.ok_or(Error::TlsIncomplete { missing: TlsFile::Cert })?;
    let not_after = PeerCertificate::of(&chain[0]).map(|leaf| leaf.not_after).ok();
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match contents.roots()? {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
            builder.with_client_cert_verifier(
                verifier.build().expect("there are roots, and no revocation lists"),
            )
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|source| files.error(source))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((config, not_after))
}

/// Always given explicitly: the process's default is not ours to set.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn system_roots() -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(Error::TlsNoRoots) } else { Ok(roots) }
}
