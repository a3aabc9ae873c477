//! The binary as a child process in the namespace of a host of the virtual network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kpng_testkit::network::Host;
use rustix::process::{Pid, Signal, kill_process};

/// A running kpng. It is killed when dropped.
pub(crate) struct Kpng {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Kpng {
    /// Starts the binary in the host's namespace.
    pub(crate) fn start(host: &Host, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
        command.args(arguments);
        Self::spawn(host, command)
    }

    /// Starts a command that becomes the binary, in the host's namespace.
    pub(crate) fn spawn(host: &Host, mut command: Command) -> Self {
        let mut child = host.run(move || {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let log = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut stream in streams {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    log.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
                }
            });
        }
        Self { child, log }
    }

    /// Everything that it printed.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("kpng ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // The last lines are still on their way.
        std::thread::sleep(Duration::from_millis(50));
        status.unwrap()
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until it says that everything is in force.
    pub(crate) fn wait_ready(&self, host: &Host) {
        self.wait_ready_at(host, 10256);
    }

    /// The same, with another port for health.
    pub(crate) fn wait_ready_at(&self, host: &Host, port: u16) {
        let mut last = None;
        let ready = within(Duration::from_secs(20), || {
            last = http(host, port, "/readyz");
            last.as_ref().is_some_and(|answer| answer.contains(" 200 "))
        });
        assert!(ready, "not ready: {last:?}\n{}", self.log());
    }
}

impl Drop for Kpng {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The answer to a GET request on the host's loopback; `None` when nobody listens.
pub(crate) fn http(host: &Host, port: u16, path: &str) -> Option<String> {
    http_by_name(host, port, "localhost", path)
}

/// The same, of a client that calls the host `name`.
pub(crate) fn http_by_name(host: &Host, port: u16, name: &str, path: &str) -> Option<String> {
    let [name, path] = [name, path].map(str::to_owned);
    host.run(move || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

/// Whether it becomes true in this time.
pub(crate) fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until it becomes true.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(Duration::from_secs(15), condition), "{what}: it never happened");
}

/// Runs a program in the host's namespace.
pub(crate) fn run(host: &Host, arguments: &[&str]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    host.run(move || {
        let output = Command::new(&arguments[0]).args(&arguments[1..]).output();
        let output = output.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    })
}
