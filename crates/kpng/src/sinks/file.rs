//! `to-file`: what the cluster says, in a file that the source `file` reads back as the same state.
//!
//! Whoever reads the file sees one whole state: it is replaced by a rename. It is not touched when
//! nothing in it changes, and writing takes at most a tenth of the time.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kpng_core::backoff::Backoff;
use kpng_core::store::Reader;
use kpng_file::State;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// The shortest time between two writes; changes gather meanwhile.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// How many times longer than a write the pause after it is.
const PAUSES_PER_WRITE: u32 = 9;

/// Keeps the file `output` equal to what `reader` says, until `shutdown` completes or the source is
/// gone; with `once` until the first complete state is written. A write that has begun is finished.
///
/// # Errors
/// When the file cannot be written in the first place. Later that is only reported, and tried again.
pub async fn run(
    mut reader: Reader,
    output: &Path,
    once: bool,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut writer = Writer::new(output).with_context(|| cannot_write(output))?;
    let mut state = State::default();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let (mut written_before, mut failing) = (false, false);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            more = reader.ready(), if !failing => if !more { return Ok(()) },
            () = std::future::ready(()), if failing => {}
        }
        while let Some(update) = reader.try_next() {
            state.apply(&update);
        }
        let started = Instant::now();
        let job = tokio::task::spawn_blocking(move || {
            let result = writer.write(&kpng_file::render(&state));
            (writer, state, result)
        });
        let result;
        (writer, state, result) = job.await.expect("rendering and writing do not panic");
        let pause = match result {
            Ok(_) if once => return Ok(()),
            Ok(changed) => {
                if failing {
                    info!(file = %output.display(), "the file can be written again");
                }
                let milliseconds = started.elapsed().as_millis();
                debug!(file = %output.display(), changed, milliseconds, "the file is up to date");
                (written_before, failing) = (true, false);
                backoff.reset();
                MIN_PAUSE.max(started.elapsed() * PAUSES_PER_WRITE)
            }
            Err(error) if !written_before => return Err(error).context(cannot_write(output)),
            Err(error) => {
                if !failing {
                    warn!("{}: {error}; trying again", cannot_write(output));
                }
                failing = true;
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn cannot_write(output: &Path) -> String {
    format!("cannot write {}", output.display())
}

/// Refuses to write into the file that is read.
///
/// # Errors
/// When `input` and `output` are the same file.
pub fn check_distinct(input: &Path, output: &Path) -> anyhow::Result<()> {
    let identity = |path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    if let (Some(input_file), Some(output_file)) = (identity(input), identity(output))
        && input_file == output_file
    {
        bail!(
            "--input {} and --output {} are the same file: give another --output",
            input.display(),
            output.display()
        );
    }
    Ok(())
}

/// Writes one file.
#[derive(Debug)]
struct Writer {
    target: Target,
    hasher: RandomState,
    /// The hash of what is in the file.
    written: Option<u64>,
}

/// What a path leads to.
#[derive(Debug)]
enum Target {
    /// A file that is replaced, or will be there.
    File(PathBuf),
    /// A pipe or a device, such as `/dev/stdout`: it is written to.
    Stream(PathBuf),
}

impl Writer {
    /// Makes sure that `output` can be written.
    fn new(output: &Path) -> io::Result<Self> {
        let target = match fs::metadata(output) {
            // A link stays, and what it leads to is replaced.
            Ok(found) if found.is_file() => Target::File(fs::canonicalize(output)?),
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => Target::Stream(output.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Target::File(output.to_owned())
            }
            Err(error) => return Err(error),
        };
        let hasher = RandomState::new();
        let written = match &target {
            Target::File(path) => {
                drop(Temporary::create(path)?);
                fs::read(path).ok().map(|bytes| hasher.hash_one(bytes.as_slice()))
            }
            Target::Stream(_) => None,
        };
        Ok(Self { target, hasher, written })
    }

    /// Makes the file's content `text`, and says whether it was another.
    fn write(&mut self, text: &str) -> io::Result<bool> {
        let hash = self.hasher.hash_one(text.as_bytes());
        if self.written == Some(hash) {
            return Ok(false);
        }
        match &self.target {
            Target::File(path) => {
                let mut temporary = Temporary::create(path)?;
                temporary.file.write_all(text.as_bytes())?;
                temporary.rename(path)?;
            }
            Target::Stream(path) => {
                OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())?;
            }
        }
        self.written = Some(hash);
        Ok(true)
    }
}

/// A new file beside another. It is removed when it is dropped.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Temporary {
    /// An empty file in the same folder as `target`, with the mode of ordinary new files.
    fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.new", std::process::id()));
        let path = target.with_file_name(hidden);
        let create = || OpenOptions::new().write(true).create_new(true).open(&path);
        let file = match create() {
            // Of a process that had our number and was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                create()?
            }
            result => result?,
        };
        Ok(Self { path, file, renamed: false })
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(file = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}

#[cfg(test)]
mod tests;
