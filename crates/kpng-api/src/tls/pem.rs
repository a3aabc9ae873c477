//! The contents of PEM files.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{TlsFile, TlsFiles};
use crate::error::Error;

/// What was in the files at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    key: Option<Content>,
    cert: Option<Content>,
    ca: Option<Content>,
}

type Content = (PathBuf, Vec<u8>);

/// A key with its certificate.
pub(super) struct KeyPair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) files: KeyPairFiles,
}

/// Where a key and its certificate come from.
pub(super) struct KeyPairFiles {
    key: PathBuf,
    certificate: PathBuf,
}

impl KeyPairFiles {
    pub(super) fn error(self, source: rustls::Error) -> Error {
        let Self { key, certificate } = self;
        Error::TlsKeyPair { key, certificate, source }
    }
}

impl Contents {
    /// Reads all files that were given.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, Error> {
        let TlsFiles { key, cert, ca } = files;
        Ok(Self {
            key: read(TlsFile::Key, key.as_deref())?,
            cert: read(TlsFile::Cert, cert.as_deref())?,
            ca: read(TlsFile::Ca, ca.as_deref())?,
        })
    }

    /// The key and certificate, if they were given. One of them without the other is an error.
    pub(super) fn key_pair(&self) -> Result<Option<KeyPair>, Error> {
        let (key, cert) = match (&self.key, &self.cert) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(Error::TlsIncomplete { missing: TlsFile::Key }),
            (Some(_), None) => return Err(Error::TlsIncomplete { missing: TlsFile::Cert }),
            (Some(key), Some(cert)) => (key, cert),
        };
        Ok(Some(KeyPair {
            chain: certificates(TlsFile::Cert, cert)?,
            key: PrivateKeyDer::from_pem_slice(&key.1)
                .map_err(|source| bad_pem(TlsFile::Key, &key.0, source))?,
            files: KeyPairFiles { key: key.0.clone(), certificate: cert.0.clone() },
        }))
    }

    /// The certificates of the CA, if it was given.
    pub(super) fn roots(&self) -> Result<Option<RootCertStore>, Error> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(TlsFile::Ca, ca)? {
            let unusable =
                |source| Error::TlsUnusable { file: TlsFile::Ca, path: ca.0.clone(), source };
            roots.add(certificate).map_err(unusable)?;
        }
        Ok(Some(roots))
    }
}

fn read(file: TlsFile, path: Option<&Path>) -> Result<Option<Content>, Error> {
    let Some(path) = path else { return Ok(None) };
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some((path.to_owned(), bytes))),
        Err(source) => Err(Error::TlsRead { file, path: path.to_owned(), source }),
    }
}

/// All certificates of a file; at least one.
fn certificates(
    file: TlsFile,
    (path, bytes): &Content,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => {
            Err(bad_pem(file, path, pem::Error::NoItemsFound))
        }
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(bad_pem(file, path, source)),
    }
}

fn bad_pem(file: TlsFile, path: &Path, source: pem::Error) -> Error {
    Error::TlsPem { file, path: path.to_owned(), source }
}
