//! The binary as a child process, and states to give to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serve no health and no metrics: tests run side by side.
pub(crate) const QUIET: [&str; 2] = ["--healthz-bind-address=", "--metrics-bind-address="];

/// Runs the binary until it ends by itself.
pub(crate) fn kpng(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it prints, if it succeeds.
pub(crate) fn output(arguments: &[&str]) -> String {
    let output = kpng(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// It fails, and its last words have all these in them.
pub(crate) fn fails(arguments: &[&str], words: &[&str]) {
    let output = kpng(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    for word in words {
        assert!(errors.contains(word), "{arguments:?}: {word:?} is not in\n{errors}");
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST").args(arguments);
    command
}

/// A running kpng. It is killed when dropped.
pub(crate) struct Kpng {
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Kpng {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (mut stderr, all) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut buffer) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, lines, log }
    }

    /// Serves the state in `input` at `listen`.
    pub(crate) fn serve(input: &Path, listen: &str) -> Self {
        let input = format!("--input={}", input.display());
        let server =
            Self::start(&[&["file", &input, "to-api", "--listen", listen][..], &QUIET].concat());
        server.wait_for_log("the state is complete");
        server
    }

    /// Standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn wait_for_log(&self, text: &str) {
        assert!(within(|| self.log().contains(text)), "{text:?} is not in\n{}", self.log());
    }

    /// The next line of standard output.
    pub(crate) fn line(&self) -> String {
        let line = self.lines.recv_timeout(PATIENCE);
        line.unwrap_or_else(|error| panic!("{error}: no line\n{}", self.log()))
    }

    /// The same, as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// There is no other line, for a while.
    pub(crate) fn no_line(&self) {
        let line = self.lines.recv_timeout(Duration::from_millis(300));
        assert_eq!(line, Err(RecvTimeoutError::Timeout));
    }

    /// Where it listens, as clients name it.
    pub(crate) fn address(&self) -> String {
        self.wait_for_log("listening address=");
        let log = self.log();
        let (_, rest) = log.split_once("listening address=").unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    }

    /// How much of the machine's memory it has.
    pub(crate) fn resident_kib(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = within(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end\n{}", self.log());
        status.unwrap()
    }

    /// As if the machine went down.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    pub(crate) fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

impl Drop for Kpng {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether it becomes true in time.
pub(crate) fn within(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// An example of the repository.
pub(crate) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

/// A folder for a state, a socket, and whatever else.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path in it as a flag: `FLAG=PATH`.
    pub(crate) fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.path(name).display())
    }

    /// A socket in it, as servers and clients name it.
    pub(crate) fn socket(&self, name: &str) -> String {
        format!("unix://{}", self.path(name).display())
    }

    /// Replaces the state by one with these Services, each with a cluster IP.
    pub(crate) fn write_state(&self, services: &[(&str, &str)]) -> PathBuf {
        let service = |(name, ip): &(&str, &str)| {
            format!(
                "- service: {{namespace: ns, name: {name}, ips: {{clusterips: {{v4: [{ip}]}}}}, \
                 ports: [{{name: http, port: 80}}]}}\n"
            )
        };
        let list: String = services.iter().map(service).collect();
        let list = if list.is_empty() { " []".to_owned() } else { format!("\n{list}") };
        let (new, path) = (self.path("state.new"), self.path("state.yaml"));
        std::fs::write(&new, format!("services:{list}\n")).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }
}

/// A port of the loopback address that nobody uses.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The answer to a GET request; `None` when nobody listens.
pub(crate) fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: kpng\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
