//! A server's TLS, which follows its files.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use super::pem::Contents;
use super::{TlsFiles, server_config};
use crate::error::Error;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long before its end a certificate should have been renewed.
const SOON: Duration = Duration::from_secs(24 * 60 * 60);

/// The TLS of a server. Clones are the same.
#[derive(Clone)]
pub struct ServerTls(Arc<Inner>);

struct Inner {
    files: TlsFiles,
    interval: Duration,
    loaded: Mutex<Loaded>,
}

/// What is in force.
#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    contents: Contents,
    not_after: Option<SystemTime>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the key.
        f.debug_tuple("ServerTls").field(&self.0.files).finish()
    }
}

impl ServerTls {
    /// Reads the files: a key and a certificate; with a CA, clients must have a certificate that it
    /// signed.
    ///
    /// # Errors
    /// When a file is missing, or cannot be used, or the key is not that of the certificate.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        Self::load_every(INTERVAL, files)
    }

    pub(super) fn load_every(interval: Duration, files: &TlsFiles) -> Result<Self, Error> {
        let loaded = Mutex::new(Loaded::new(Contents::read(files)?)?);
        Ok(Self(Arc::new(Inner { files: files.clone(), interval, loaded })))
    }

    /// Makes connections secure, with the certificate that is in force now.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.loaded().config)
    }

    /// Every 5 seconds looks whether the files hold something else, and puts it in force for new
    /// connections. What cannot be used is reported once, and what was in force stays.
    pub async fn follow(&self) -> ! {
        let mut warned = self.loaded().warn_of_expiry(None);
        // What could not be used, or why nothing could be read.
        let mut rejected: Option<Result<Contents, String>> = None;
        loop {
            sleep(self.0.interval).await;
            let read = self.read().await;
            if read.as_ref().ok() == Some(&self.loaded().contents) {
                rejected = None;
                warned = self.loaded().warn_of_expiry(warned);
                continue;
            }
            let found = match &read {
                Ok(contents) => Ok(contents.clone()),
                Err(error) => Err(error.to_string()),
            };
            if rejected.as_ref() == Some(&found) {
                warned = self.loaded().warn_of_expiry(warned);
                continue;
            }
            match read.and_then(Loaded::new) {
                Ok(loaded) => {
                    info!("the TLS files have changed, and are used for new connections");
                    warned = loaded.warn_of_expiry(None);
                    *self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
                    rejected = None;
                }
                Err(error) => {
                    error!("the TLS files have changed, but those before stay in use: {error}");
                    rejected = Some(found);
                }
            }
        }
    }

    async fn read(&self) -> Result<Contents, Error> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || Contents::read(&inner.files))
            .await
            .expect("reading files does not panic")
    }

    fn loaded(&self) -> Loaded {
        self.0.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was said about the end of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warned {
    Soon,
    Expired,
}

impl Loaded {
    fn new(contents: Contents) -> Result<Self, Error> {
        let (config, not_after) = server_config(&contents)?;
        Ok(Self { config: Arc::new(config), contents, not_after })
    }

    /// Says that the certificate is about to expire, or has, unless it was said `before`.
    fn warn_of_expiry(&self, before: Option<Warned>) -> Option<Warned> {
        let now = SystemTime::now();
        let due = match self.not_after {
            Some(end) if end < now => Some(Warned::Expired),
            Some(end) if end < now + SOON => Some(Warned::Soon),
            _ => None,
        };
        if due != before {
            match due {
                Some(Warned::Expired) => {
                    warn!("the TLS certificate has expired: clients will refuse it; renew it");
                }
                Some(Warned::Soon) => {
                    warn!("the TLS certificate expires within a day; renew it");
                }
                None => {}
            }
        }
        due
    }
}
