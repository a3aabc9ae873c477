//! The example clients as programs that can be started. What they need is kept in `.testbin` of the
//! workspace, so that only the first run needs the network.
//!
//! Where Go or Python or what they download is missing, tests are skipped, loudly; with `CI=true` they
//! fail.

#![expect(clippy::disallowed_methods, reason = "the clients and their compilers are programs")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A client that can be started.
pub(crate) struct Program(Vec<OsString>);

impl Program {
    /// Runs it to its end, and returns what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> String {
        printed(&self.command(arguments).output().await.unwrap())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.0[0]);
        command.args(&self.0[1..]).args(arguments).kill_on_drop(true);
        command
    }
}

/// What a program printed that had no trouble.
fn printed(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    text
}

/// The folder of an example.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// A folder of the workspace that is kept, and locked while this is there.
fn cache(name: &str) -> (PathBuf, File) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.testbin").join(name);
    fs::create_dir_all(&folder).unwrap();
    let folder = folder.canonicalize().unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    (folder, lock)
}

/// Says why a test is skipped, where everybody sees it.
fn skip(why: &str) {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "{why}");
    // Not by `eprintln!`, which is shown for failing tests only.
    drop(writeln!(std::io::stderr(), "\n*** SKIPPED, the test of an example client: {why}\n"));
}

/// Prepares something. `None` if that is impossible here, after saying why.
fn prepare(command: &mut Command) -> Option<()> {
    match command.output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            skip(&format!("{command:?} fails: {}", errors.trim()));
        }
        Err(error) => skip(&format!("{command:?} cannot be started: {error}")),
    }
    None
}

/// Go in the folder of the example.
fn go(arguments: &[&str]) -> Command {
    let mut command = Command::new("go");
    command.current_dir(example("go-client")).args(arguments);
    command
}

/// `examples/go-client`, built.
pub(crate) fn go_client() -> Option<Program> {
    prepare(&mut go(&["mod", "download"]))?;
    let (folder, _lock) = cache("go-client");
    let program = folder.join("client");
    printed(&go(&["build", "-o"]).arg(&program).arg(".").output().unwrap());
    printed(&go(&["vet", "./..."]).output().unwrap());
    Some(Program(vec![program.into()]))
}

/// What `examples/go-client/generate.sh` makes.
pub(crate) fn generate_go() -> Option<TempDir> {
    prepare(&mut go(&["mod", "download"]))?;
    let python = python()?;
    let folder = tempfile::tempdir().unwrap();
    let mut generate = Command::new(example("go-client").join("generate.sh"));
    printed(&generate.arg(folder.path()).env("PYTHON", python).output().unwrap());
    Some(folder)
}

/// `examples/python-client`.
pub(crate) fn python_client() -> Option<Program> {
    let client = example("python-client").join("client.py");
    Some(Program(vec![python()?.into(), "-B".into(), client.into()]))
}

/// A Python that has what `examples/python-client/requirements.txt` says.
fn python() -> Option<PathBuf> {
    let requirements = example("python-client").join("requirements.txt");
    let (folder, _lock) = cache("python-client");
    let (venv, installed) = (folder.join("venv"), folder.join("installed"));
    let python = venv.join("bin/python");
    let works = || Command::new(&python).args(["-c", "import grpc_tools"]).output();
    let wanted = fs::read_to_string(&requirements).unwrap();
    if fs::read_to_string(&installed).is_ok_and(|text| text == wanted)
        && works().is_ok_and(|output| output.status.success())
    {
        return Some(python);
    }
    prepare(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements);
    prepare(&mut install)?;
    fs::write(installed, wanted).unwrap();
    Some(python)
}

/// `examples/embed_client.rs`, built where this test was built.
pub(crate) fn rust_client() -> Program {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).expect("cargo puts tests into target/PROFILE/deps");
    let target = profile.parent().expect("it is in the target directory");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "embed_client", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    // What cargo tells the programs that it runs would make build scripts run again.
    let told = std::env::vars_os().map(|(name, _)| name);
    let told = told.filter(|name| name.to_string_lossy().starts_with("CARGO_"));
    told.filter(|name| name != "CARGO_HOME").for_each(|name| {
        cargo.env_remove(name);
    });
    printed(&cargo.arg("--target-dir").arg(target).output().unwrap());
    Program(vec![profile.join("examples/embed_client").into()])
}
