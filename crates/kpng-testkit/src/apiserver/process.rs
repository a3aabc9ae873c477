//! Child processes that never outlive the test.
//!
//! Each child runs below a small shell that waits for the end of its standard input. That pipe
//! closes when the [`Child`] is dropped and also when the test process dies in whatever way.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `"$@"`, writes its process id to the first argument, kills it when standard input ends.
/// Exits by itself when the child does.
const GUARD: &str = r#"
pidfile=$1; shift
exec 3<&0
"$@" </dev/null 3<&- & child=$!
echo "$child" > "$pidfile.new" && mv "$pidfile.new" "$pidfile"
{ read -r _ <&3; kill -KILL "$child" 2>/dev/null; } & guard=$!
wait "$child"
kill "$guard" 2>/dev/null
"#;

/// A running child.
#[derive(Debug)]
pub(super) struct Child {
    guard: std::process::Child,
    log: PathBuf,
    pid_file: PathBuf,
}

impl Child {
    /// Starts `program` with its output in `log`.
    pub(super) fn spawn(program: &Path, arguments: &[String], dir: &Path, log: &Path) -> Self {
        let pid_file = log.with_extension("pid");
        drop(fs::remove_file(&pid_file));
        let output = File::options().create(true).append(true).open(log);
        let output = output.expect("the temporary directory is writable");
        let guard = command(Path::new("sh"))
            .args(["-c", GUARD, "guard"])
            .args([&pid_file, program])
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a file can be cloned"))
            .stderr(output)
            .spawn()
            .expect("sh exists");
        Self { guard, log: log.to_owned(), pid_file }
    }

    /// Sends a signal by name (`STOP`, `CONT`, `TERM`).
    pub(super) fn signal(&self, name: &str) {
        let pid = fs::read_to_string(&self.pid_file).expect("the child was started");
        let arguments = ["-s".to_owned(), name.to_owned(), pid.trim().to_owned()];
        run(Path::new("kill"), &arguments, Path::new("/"), &[]).expect("the child runs");
    }

    /// Panics with the end of the log when the child is gone.
    pub(super) fn assert_alive(&self) {
        let pid = fs::read_to_string(&self.pid_file).unwrap_or_default();
        let alive = pid.is_empty() || Path::new("/proc").join(pid.trim()).exists();
        assert!(alive, "{} ended:\n{}", self.log.display(), tail(&self.log));
    }

    /// Waits until something listens on `127.0.0.1:port`.
    pub(super) fn wait_for_port(&self, port: u16, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            self.assert_alive();
            assert!(Instant::now() < deadline, "nothing on port {port}:\n{}", tail(&self.log));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        drop(self.guard.wait());
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Runs a program to its end. An error says what it printed.
pub(super) fn run(
    program: &Path,
    arguments: &[String],
    dir: &Path,
    environment: &[(&str, &str)],
) -> Result<String, String> {
    let what = || format!("`{} {}`", program.display(), arguments.join(" "));
    let output = command(program)
        .args(arguments)
        .current_dir(dir)
        .envs(environment.iter().copied())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", what()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed with {}:\n{message}", what(), output.status))
}

#[expect(clippy::disallowed_methods, reason = "the test kit may start programs")]
fn command(program: &Path) -> Command {
    Command::new(program)
}
