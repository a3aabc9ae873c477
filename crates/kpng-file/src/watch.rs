//! Follows a file: reads it, and again whenever it changes.
//!
//! The store always holds the last state that could be read as a whole.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kpng_core::store::Writer;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::Error;
use crate::parse::{Options, parse};
use crate::state::State;

/// A file is read when nothing happened around it for this long: who replaces it is done then.
const QUIET: Duration = Duration::from_millis(50);
/// It is read after this time even when its surroundings never come to rest.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the file is looked at without notice: some changes give none (on network file systems,
/// or when a link further up the path is turned).
const POLL: Duration = Duration::from_secs(5);

/// Reads the file at `path`.
///
/// # Errors
/// When it cannot be read, or is not valid: see [`parse`].
pub fn read(path: &Path, options: &Options) -> Result<State, Error> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, options).map_err(|problem| Error::Invalid { path: path.to_owned(), problem })
}

/// Makes the store of `writer` equal to the file at `path`, and keeps it equal until `shutdown`
/// completes.
///
/// Files that are written in place, replaced by a rename, or reached through links that are turned
/// (as those of a ConfigMap) are all followed; only a rename makes sure that nobody sees half a file.
/// When the file has become invalid or unreadable this is logged as an error, once, and the store
/// stays as it is until the file is mended.
///
/// # Errors
/// When the file cannot be read in the first place. Nothing is written to the store then.
pub async fn run(
    path: &Path,
    options: &Options,
    writer: &mut Writer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut notices = Notices::new(path);
    let mut version = Version::of(path);
    apply(path, load(path, options).await?, writer);
    let mut healthy = true;

    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = notices.settled() => {}
            () = sleep(POLL) => {}
        }
        // Looked at before the file is read: a change after that is seen the next time.
        let now = Version::of(path);
        notices.watch(path);
        if now == version {
            continue;
        }
        version = now;
        match load(path, options).await {
            Ok(state) => {
                if !healthy {
                    tracing::info!(file = %path.display(), "the file is valid again");
                }
                healthy = true;
                apply(path, state, writer);
            }
            Err(error) => {
                healthy = false;
                tracing::error!("{error}; the last good state stays in force");
            }
        }
    }
}

/// Big files take a while, which is not taken from the other tasks.
async fn load(path: &Path, options: &Options) -> Result<State, Error> {
    let (owned, options) = (path.to_owned(), options.clone());
    let task = tokio::task::spawn_blocking(move || read(&owned, &options));
    task.await.unwrap_or_else(|error| {
        if error.is_panic() {
            std::panic::resume_unwind(error.into_panic());
        }
        let source = io::Error::other("the runtime is shutting down");
        Err(Error::Read { path: path.to_owned(), source })
    })
}

fn apply(path: &Path, state: State, writer: &mut Writer) {
    let (services, nodes) = (state.services.len(), state.nodes.len());
    let applied = writer.apply(state.into_batch());
    let (changed, revision) = (applied.changed, applied.revision);
    tracing::info!(file = %path.display(), services, nodes, changed, revision, "read the file");
}

/// What tells one version of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
enum Version {
    Unreadable(io::ErrorKind),
    Of { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl Version {
    fn of(path: &Path) -> Self {
        let describe = |metadata: Metadata| Self::Of {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        fs::metadata(path).map_or_else(|error| Self::Unreadable(error.kind()), describe)
    }
}

/// Notices of the kernel that something happened in the directories where the file, or what it links
/// to, lives. Without inotify there are none, and polling remains.
struct Notices {
    /// Read like a pipe: it is no other kind of file descriptor to tokio.
    inotify: Option<Receiver>,
    watched: BTreeSet<i32>,
}

impl Notices {
    fn new(path: &Path) -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC);
        let inotify = inotify.map_err(io::Error::from).and_then(Receiver::from_owned_fd_unchecked);
        if let Err(error) = &inotify {
            tracing::warn!(
                %error,
                "cannot use inotify: changes of {} are noticed within {POLL:?} only",
                path.display(),
            );
        }
        let mut notices = Self { inotify: inotify.ok(), watched: BTreeSet::new() };
        notices.watch(path);
        notices
    }

    /// Watches where the file is now, and no longer where it was. A directory that cannot be watched
    /// is left to polling.
    fn watch(&mut self, path: &Path) {
        let Some(inotify) = &self.inotify else { return };
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        let add = |directory| inotify::add_watch(inotify, directory, flags).ok();
        let watched: BTreeSet<i32> = directories(path).iter().filter_map(add).collect();
        for gone in self.watched.difference(&watched) {
            if let Err(error) = inotify::remove_watch(inotify, *gone) {
                // The kernel drops the watch of a directory that is deleted.
                tracing::trace!(%error, "a watch was gone already");
            }
        }
        self.watched = watched;
    }

    /// Waits until something happened and then nothing more did for a moment. Cancel safe.
    async fn settled(&self) {
        self.happened().await;
        let latest = Instant::now() + PATIENCE;
        while Instant::now() < latest {
            let quiet = (Instant::now() + QUIET).min(latest);
            if timeout_at(quiet, self.happened()).await.is_err() {
                return;
            }
        }
    }

    async fn happened(&self) {
        let Some(inotify) = &self.inotify else { return std::future::pending().await };
        if let Err(error) = drain(inotify).await {
            tracing::warn!(%error, "cannot read from inotify");
            sleep(POLL).await;
        }
    }
}

/// Waits for events and takes them away. What they say does not matter.
async fn drain(inotify: &Receiver) -> io::Result<()> {
    let mut events = [0; 4096];
    loop {
        inotify.readable().await?;
        match inotify.try_read(&mut events) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(drop),
        }
    }
}

/// The directory of the path as it is written, and the one of the file that it leads to.
fn directories(path: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Some(PathBuf::from(".")),
        parent => parent.map(Path::to_owned),
    };
    let target = fs::canonicalize(path).ok();
    parent(path).into_iter().chain(target.as_deref().and_then(parent)).collect()
}
