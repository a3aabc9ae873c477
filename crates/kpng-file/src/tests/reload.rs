//! Real files, real inotify.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use expect_test::expect;
use kpng_core::store::{Reader, Store};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::{Error, Options, run};

/// Less than the time after which a file is looked at without notice.
const SOON: Duration = Duration::from_secs(3);

struct Running {
    directory: tempfile::TempDir,
    store: Store,
    reader: Reader,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

fn nodes(names: &[&str]) -> String {
    let nodes: Vec<_> = names.iter().map(|name| format!("{{name: {name}}}")).collect();
    format!("nodes: [{}]\n", nodes.join(", "))
}

/// Follows the file `state.yaml` of a new directory that `prepare` fills.
async fn start(prepare: impl FnOnce(&Path)) -> Running {
    let directory = tempfile::tempdir().unwrap();
    prepare(directory.path());
    let (mut writer, store) = Store::new();
    let path = directory.path().join("state.yaml");
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move { drop(stopped.await) };
    let task =
        tokio::spawn(async move { run(&path, &Options::default(), &mut writer, shutdown).await });
    Running { directory, reader: store.reader(), store, stop, task }
}

impl Running {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits until the store has exactly these nodes.
    async fn expect(&mut self, names: &[&str]) {
        let wait = async {
            while self.store.len().1 != names.len()
                || !names.iter().all(|name| self.store.node(name).is_some())
            {
                self.reader.next().await.expect("the source is running");
            }
        };
        let waited = timeout(SOON, wait).await;
        assert!(waited.is_ok(), "the store has not become {names:?}");
    }

    /// What was written last does not change the store.
    async fn expect_no_change(&self) {
        let revision = self.store.revision();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(self.store.revision(), revision);
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(SOON, self.task).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_replaced() {
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    for names in [&["b"][..], &["a", "b"], &[]] {
        fs::write(running.path("next"), nodes(names)).unwrap();
        fs::rename(running.path("next"), running.path("state.yaml")).unwrap();
        running.expect(names).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn a_file_that_is_written_in_place() {
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    fs::write(running.path("state.yaml"), nodes(&["b"])).unwrap();
    running.expect(&["b"]).await;
    running.stop().await;
}

/// The kubelet writes a ConfigMap's files into a new directory and turns the link `..data` to it.
#[tokio::test]
async fn a_file_of_a_config_map() {
    let version = |at: &Path, name: &str, names: &[&str]| {
        fs::create_dir(at.join(name)).unwrap();
        fs::write(at.join(name).join("state.yaml"), nodes(names)).unwrap();
    };
    let mut running = start(|at| {
        version(at, "..1", &["a"]);
        symlink("..1", at.join("..data")).unwrap();
        symlink("..data/state.yaml", at.join("state.yaml")).unwrap();
    })
    .await;
    running.expect(&["a"]).await;
    for (old, new, names) in [("..1", "..2", &["b"]), ("..2", "..3", &["c"])] {
        version(running.directory.path(), new, names);
        symlink(new, running.path("..data_tmp")).unwrap();
        fs::rename(running.path("..data_tmp"), running.path("..data")).unwrap();
        fs::remove_dir_all(running.path(old)).unwrap();
        running.expect(names).await;
    }
    running.stop().await;
}

/// Also where the link leads to another directory, and the file there is written in place.
#[tokio::test]
async fn a_file_behind_a_link() {
    let mut running = start(|at| {
        fs::create_dir(at.join("elsewhere")).unwrap();
        fs::write(at.join("elsewhere/real.yaml"), nodes(&["a"])).unwrap();
        symlink("elsewhere/real.yaml", at.join("state.yaml")).unwrap();
    })
    .await;
    running.expect(&["a"]).await;
    fs::write(running.path("elsewhere/real.yaml"), nodes(&["b"])).unwrap();
    running.expect(&["b"]).await;
    running.stop().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_until_it_is_mended() {
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    for broken in ["nodes: [", "", "nodes: [{name: b}, {name: b}]"] {
        fs::write(running.path("state.yaml"), broken).unwrap();
        running.expect_no_change().await;
    }
    fs::write(running.path("state.yaml"), nodes(&["c"])).unwrap();
    running.expect(&["c"]).await;

    fs::remove_file(running.path("state.yaml")).unwrap();
    running.expect_no_change().await;
    fs::write(running.path("state.yaml"), nodes(&["d"])).unwrap();
    running.expect(&["d"]).await;
    running.stop().await;
}

/// Takes the log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    fs::write(running.path("state.yaml"), "nodes:\n- name: b\n  goingaway: 1\n").unwrap();
    running.expect_no_change().await;
    fs::write(running.path("state.yaml"), nodes(&["c"])).unwrap();
    running.expect(&["c"]).await;
    fs::remove_file(running.path("state.yaml")).unwrap();
    running.expect_no_change().await;

    let path = running.path("state.yaml").display().to_string();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap().replace(&path, "FILE");
    expect![[r#"
         INFO read the file file=FILE services=0 nodes=1 changed=1 revision=1
        ERROR FILE:3:14: nodes[0].goingaway: expected true or false, found the number 1; the last good state stays in force
         INFO the file is valid again file=FILE
         INFO read the file file=FILE services=0 nodes=1 changed=2 revision=2
        ERROR cannot read FILE: No such file or directory (os error 2); the last good state stays in force
    "#]].assert_eq(&log);
    running.stop().await;
}

/// Files next to it, and a new version with the same content, make no revision.
#[tokio::test]
async fn nothing_new_makes_no_revision() {
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    fs::write(running.path("other.yaml"), nodes(&["b"])).unwrap();
    fs::write(running.path("state.yaml"), nodes(&["a"])).unwrap();
    running.expect_no_change().await;
    running.stop().await;
}

/// Whoever writes without a pause is not waited for forever.
#[tokio::test]
async fn a_busy_directory() {
    let mut running = start(|at| fs::write(at.join("state.yaml"), nodes(&["a"])).unwrap()).await;
    running.expect(&["a"]).await;
    let busy = running.path("busy");
    let (done, mut stopped) = oneshot::channel::<()>();
    let noise = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            fs::write(&busy, "x").unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let start = Instant::now();
    fs::write(running.path("state.yaml"), nodes(&["b"])).unwrap();
    running.expect(&["b"]).await;
    assert!(start.elapsed() < SOON);
    done.send(()).unwrap();
    noise.await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_first_read_that_fails_is_an_error() {
    for (content, expected) in [
        (None, "cannot read {}: No such file or directory (os error 2)"),
        (
            Some(&b"nodes: [{nmae: a}]"[..]),
            "{}:1:10: nodes[0].nmae: unknown field \"nmae\": the \
          fields here are name, labels, annotations, topology, internalips, podcidrs, goingaway",
        ),
        (Some(b"\xff"), "cannot read {}: stream did not contain valid UTF-8"),
    ] {
        let running = start(|at| {
            content.into_iter().for_each(|c| fs::write(at.join("state.yaml"), c).unwrap());
        })
        .await;
        let path = running.path("state.yaml").display().to_string();
        let error = running.task.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), expected.replace("{}", &path));
        assert!(!running.store.is_synced());
    }
}
