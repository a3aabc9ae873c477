//! Which client sticks to which target, and for how long; kept in a file over a restart.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kpng_core::backoff::random;
use kpng_core::plan::Target;
use tracing::warn;

use crate::routes::{Pool, Route};

/// The largest number of clients that are remembered. Further ones are spread.
const CAPACITY: usize = 1 << 18;

/// Remembers choices.
#[derive(Debug)]
pub(crate) struct Affinity {
    file: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    chosen: HashMap<(Arc<str>, IpAddr), Chosen>,
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Chosen {
    target: Target,
    /// In seconds since 1970, as it outlives the process.
    until: u64,
}

impl Affinity {
    /// What an earlier process left in `folder`.
    pub(crate) fn load(folder: &Path) -> Self {
        let file = folder.join("userspacelin-affinity");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let chosen = text.lines().filter_map(parse).filter(|(_, chosen)| chosen.until > now());
        let inner = Inner { chosen: chosen.take(CAPACITY).collect(), changed: false };
        Self { file, inner: Mutex::new(inner) }
    }

    /// The target of a new connection: the one that the client sticks to, if it is in the pool and was
    /// not tried, else any that was not tried.
    pub(crate) fn choose(
        &self,
        route: &Route,
        pool: &Pool,
        client: IpAddr,
        tried: &[Target],
    ) -> Option<Target> {
        let Some(timeout) = pool.affinity else { return any(&pool.targets, tried) };
        let key = (Arc::clone(&route.service_port), client);
        let mut inner = self.lock();
        let known = inner.chosen.get(&key).filter(|chosen| chosen.until > now());
        let may = |target: &Target| pool.targets.contains(target) && !tried.contains(target);
        let known = known.map(|chosen| chosen.target).filter(may);
        let target = known.or_else(|| any(&pool.targets, tried))?;
        let until = now() + timeout.as_secs();
        if inner.chosen.len() >= CAPACITY {
            let now = now();
            inner.chosen.retain(|_, chosen| chosen.until > now);
        }
        if inner.chosen.len() < CAPACITY || inner.chosen.contains_key(&key) {
            inner.chosen.insert(key, Chosen { target, until });
            inner.changed = true;
        }
        Some(target)
    }

    /// Writes the file, if something changed since the last time.
    pub(crate) fn save(&self) {
        let text = {
            let mut inner = self.lock();
            if !std::mem::take(&mut inner.changed) {
                return;
            }
            let line =
                |((port, client), Chosen { target, until }): (&(Arc<str>, IpAddr), &Chosen)| {
                    let target = SocketAddr::new(target.address, target.port);
                    format!("{until}\t{client}\t{target}\t{port}\n")
                };
            let mut lines: Vec<_> = inner.chosen.iter().map(line).collect();
            lines.sort_unstable();
            lines.concat()
        };
        if let Err(error) = self.write(&text) {
            let error: &dyn std::error::Error = &error;
            warn!(error, file = %self.file.display(), "cannot keep affinity for the next process");
        }
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        let folder = self.file.parent().unwrap_or_else(|| Path::new("."));
        fs::create_dir_all(folder)?;
        let new = self.file.with_extension("new");
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(new, &self.file)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Any of the targets that was not tried, each with the same probability.
fn any(targets: &[Target], tried: &[Target]) -> Option<Target> {
    let left: usize = targets.iter().filter(|target| !tried.contains(target)).count();
    #[expect(clippy::cast_precision_loss, reason = "there are few targets")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below `left`")]
    let index = (random() * left as f64) as usize;
    targets.iter().filter(|target| !tried.contains(target)).nth(index).copied()
}

fn parse(line: &str) -> Option<((Arc<str>, IpAddr), Chosen)> {
    let mut fields = line.splitn(4, '\t');
    let until = fields.next()?.parse().ok()?;
    let client = fields.next()?.parse().ok()?;
    let target: SocketAddr = fields.next()?.parse().ok()?;
    let target = Target { address: target.ip(), port: target.port() };
    Some(((fields.next()?.into(), client), Chosen { target, until }))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
