//! Files that are written, and not written.

use std::future::pending;
use std::os::unix::fs::PermissionsExt;

use kpng_core::store::{Kind, Store};
use kpng_file::{Options, read};
use kpng_testkit::fixture::{Fixture, fixture};

use super::*;

const STATE: &str = "
    node zone=a
    service default/web cluster=cluster.1 lb=lb.1 port=http:80 port=dns:53/UDP etp=Local affinity=77
    slice default/web http=8080 dns/UDP=5353
      pod1 zone=a hint=a
      remote1 zone=b hint=b terminating
    service default/empty cluster=cluster.2 port=http:80
";

/// What is in a folder, by name.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn write_once(store: &Store, path: &Path) -> anyhow::Result<()> {
    run(store.reader(), path, true, pending()).await
}

#[tokio::test]
async fn what_is_written_is_read_back_as_the_same_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let Fixture { store, .. } = fixture(STATE);
    write_once(&store, &path).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("77"), "affinity is written: {text}");

    let state = read(&path, &Options::default()).unwrap();
    let mut expected = State::default();
    expected.apply(&store.reader().try_next().unwrap());
    let affinity = |state: &State| {
        let web = &state.services[&kpng_core::model::NamespacedName::new("default", "web")];
        web.service.as_ref().unwrap().session_affinity
    };
    assert_eq!(affinity(&state), Some(Duration::from_secs(77)));
    assert_eq!(state.nodes, expected.nodes);
    assert_eq!(state.services.len(), expected.services.len());

    let (mut writer, second) = Store::new();
    writer.apply(state.clone().into_batch());
    let again = folder.path().join("again.yaml");
    write_once(&second, &again).await.unwrap();
    assert_eq!(fs::read_to_string(&again).unwrap(), text, "the same state is the same bytes");
    assert_eq!(read(&again, &Options::default()).unwrap(), state);
    assert_eq!(names(folder.path()), ["again.yaml", "state.yaml"], "nothing is left behind");
}

#[tokio::test]
async fn a_file_that_says_the_same_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let Fixture { store, .. } = fixture(STATE);
    let inode = || fs::metadata(&path).unwrap().ino();
    write_once(&store, &path).await.unwrap();
    let first = inode();
    write_once(&store, &path).await.unwrap();
    assert_eq!(inode(), first);
    write_once(&fixture("service default/a").store, &path).await.unwrap();
    assert_ne!(inode(), first, "another text is another file");
}

#[tokio::test]
async fn the_first_write_must_succeed_and_later_ones_are_retried() {
    let folder = tempfile::tempdir().unwrap();
    let Fixture { store, .. } = fixture(STATE);
    let missing = folder.path().join("missing/state.yaml");
    let error = write_once(&store, &missing).await.unwrap_err();
    assert!(error.to_string().contains("missing/state.yaml"), "{error}");
    assert!(write_once(&store, folder.path()).await.is_err(), "a folder is no file");

    let (mut writer, store) = Store::new();
    let state = |text: &str| kpng_file::parse(text, &Options::default()).unwrap().into_batch();
    writer.apply(state("services: [{service: {name: first}}]"));
    let (inside, outside) = (folder.path().join("inside"), folder.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    let path = inside.join("state.yaml");
    let (output, reader) = (path.clone(), store.reader());
    let task = tokio::spawn(async move { run(reader, &output, false, pending()).await });
    let content = || fs::read_to_string(&path).unwrap_or_default();
    eventually(|| content().contains("first")).await;

    fs::rename(&inside, &outside).unwrap();
    writer.apply(state("services: [{service: {name: second}}]"));
    tokio::time::sleep(MIN_PAUSE * 3).await;
    assert!(!task.is_finished());
    fs::rename(&outside, &inside).unwrap();
    eventually(|| content().contains("second")).await;
    task.abort();
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), wait).await.expect("it happens in time");
}

#[tokio::test]
async fn changes_gather_while_a_write_is_too_early() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.yaml");
    let (mut writer, store) = Store::new();
    let mut batch = kpng_core::store::Batch::new();
    Kind::ALL.into_iter().for_each(|kind| batch.mark_synced(kind));
    writer.apply(batch);
    let (output, reader) = (path.clone(), store.reader());
    let task = tokio::spawn(async move { run(reader, &output, false, pending()).await });
    let mut inodes = std::collections::BTreeSet::new();
    let started = Instant::now();
    for number in 0..100 {
        let mut batch = kpng_core::store::Batch::new();
        let key = kpng_core::model::NamespacedName::new("a", format!("service-{number}"));
        batch.set_service(key, kpng_core::model::Service::default());
        writer.apply(batch);
        tokio::time::sleep(Duration::from_millis(5)).await;
        inodes.extend(fs::metadata(&path).map(|file| file.ino()));
    }
    let most = started.elapsed().as_millis() / MIN_PAUSE.as_millis() + 2;
    assert!((2..=most).contains(&(inodes.len() as u128)), "{} writes", inodes.len());
    eventually(|| fs::read_to_string(&path).unwrap().contains("service-99")).await;
    task.abort();
}

#[test]
fn a_temporary_file_goes_when_it_is_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("state.yaml");
    let temporary = Temporary::create(&target).unwrap();
    assert_eq!(names(folder.path()).len(), 1);
    std::mem::forget(temporary); // as if killed
    let temporary = Temporary::create(&target).unwrap();
    drop(temporary);
    assert!(names(folder.path()).is_empty());

    Temporary::create(&target).unwrap().rename(&target).unwrap();
    assert_eq!(names(folder.path()), ["state.yaml"]);
    let ordinary = folder.path().join("ordinary");
    File::create(&ordinary).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&target), mode(&ordinary));
}

#[test]
fn links_stay_and_devices_are_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(Writer::new(&link).unwrap().write("new").unwrap());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&target).unwrap(), "new");

    assert!(Writer::new(Path::new("/dev/null")).unwrap().write("gone").unwrap());
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    check_distinct(&target, &folder.path().join("other")).unwrap();
    let error = check_distinct(&target, &link).unwrap_err();
    assert!(error.to_string().contains("same file"), "{error}");
}
