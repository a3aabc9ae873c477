//! What can go wrong at either end of the API. Every message says what was attempted.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::pem;

use crate::address::{ListenAddress, Target};
use crate::tls::TlsFile;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is no address.
    #[error("bad address {address:?}: {problem}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong, or what would be right.
        problem: &'static str,
    },
    /// A server cannot listen.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: ListenAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that TLS needs was not given.
    #[error("there is no {missing}: give its file")]
    TlsIncomplete {
        /// What was not given.
        missing: TlsFile,
    },
    /// A file for TLS cannot be read.
    #[error("cannot read the {file} {}: {source}", path.display())]
    TlsRead {
        /// Which one.
        file: TlsFile,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file for TLS does not hold what it should.
    #[error("there is no usable {file} in {}: {}", path.display(), pem_problem(source))]
    TlsPem {
        /// Which one.
        file: TlsFile,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate or key in a file cannot be used.
    #[error("cannot use the {file} in {}: {source}", path.display())]
    TlsUnusable {
        /// Which one.
        file: TlsFile,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A key and a certificate cannot be used together.
    #[error(
        "cannot use the TLS key {} with the TLS certificate {}: {source}",
        key.display(),
        certificate.display()
    )]
    TlsKeyPair {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// There is nothing to verify the server's certificate with.
    #[error("no TLS CA was given, and the system has no CA certificates: give the server's CA")]
    TlsNoRoots,
    /// The certificate of a peer cannot be read.
    #[error("cannot read the peer's certificate: {source}")]
    PeerCertificate {
        /// Why.
        #[source]
        source: x509_cert::der::Error,
    },
    /// No server was named.
    #[error("no server to connect to: give its address")]
    NoTarget,
    /// A server cannot be reached.
    #[error("cannot connect to {target}: {reason}")]
    Connect {
        /// The server.
        target: Target,
        /// Why, with all causes.
        reason: String,
    },
    /// A server did not answer to an attempt to connect.
    #[error("cannot connect to {target}: no answer within {} s", limit.as_secs_f32())]
    ConnectTimeout {
        /// The server.
        target: Target,
        /// How long it had.
        limit: Duration,
    },
    /// The name that the server's certificate is checked for is none.
    #[error("{name:?} is no name that a server's certificate can have: give a DNS name or an IP")]
    ServerName {
        /// What was given.
        name: String,
    },
    /// A stream was ended with an error, by the server or by what lies between.
    #[error("the stream from {target} failed: {reason}")]
    Stream {
        /// The server.
        target: Target,
        /// The status.
        code: tonic::Code,
        /// Its message, with all causes.
        reason: String,
    },
    /// The server does not know the whole cluster (yet).
    #[error("{target} has no complete state")]
    NoState {
        /// The server.
        target: Target,
    },
    /// A server has ended a stream.
    #[error("{target} has ended the stream")]
    Ended {
        /// The server.
        target: Target,
    },
    /// An answer is so long that it cannot be right.
    #[error("an answer of {target} takes more than {} MiB", limit >> 20)]
    LongAnswer {
        /// The server.
        target: Target,
        /// How long it may be, in bytes.
        limit: usize,
    },
}

/// The library's messages are made for programmers.
fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "nothing of that kind is in it".to_owned(),
        pem::Error::MissingSectionEnd { .. } => "it ends in the middle".to_owned(),
        other => format!("it is no PEM: {other}"),
    }
}
