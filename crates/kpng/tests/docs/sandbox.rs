//! Where the commands of a page run: a node with pods and a client outside, in network namespaces, and a
//! shell on the node that sees the files the documentation names and no others' processes.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kpng_testkit::apiserver::ApiServer;
use kpng_testkit::network::{Network, Topology};

/// A command that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// What a program says when it does what it was started for.
const READY: [&str; 3] = ["are in force", "is complete and served", "✓"];

/// Mounts and files of the shell's own; it begins in a new directory in memory.
const SET_UP: &str = r#"set -e
mount -t tmpfs none /run
mkdir -p /run/etc /run/work/target/release
cp -a /etc/. /run/etc
mount --bind /run/etc /etc
mkdir -p /etc/kubernetes
echo 127.0.0.1 localhost kpng-server > /etc/hosts
cd /run/work
ln -s $ROOT/examples $ROOT/docs .
ln -s $KPNG target/release/kpng
[ -z "$KUBECONFIG" ] || cp $KUBECONFIG /etc/kubernetes/kpng.conf
[ -z "$KUBECONFIG" ] || cp $KUBECONFIG F
unset KUBECONFIG
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt \
    -days 2 -subj /CN=ca
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls.key -out tls.csr \
    -subj /CN=node-1
echo subjectAltName=DNS:kpng-server > san
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out tls.crt
export PATH=/run/work/target/release:$PATH
set +e
"#;

/// The shell, and what it stands on.
pub(crate) struct Sandbox {
    // Dropped in this order: the processes live in the node's namespace.
    shell: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// Programs that go on, until the block ends: the names of the files that they write to.
    started: Vec<(String, String)>,
    count: usize,
    _api: Option<ApiServer>,
    _network: Network,
}

impl Sandbox {
    /// `None`, with the reason printed, where namespaces cannot be had and the environment says so.
    pub(crate) fn new(root: &Path, with_cluster: bool) -> Option<Self> {
        let network = Network::new(Topology { pods: 4, remote_pods: 1 })?;
        network.pods.iter().chain(&network.remote_pods).for_each(|pod| pod.serve(&[8080]));
        let api = if with_cluster { Some(network.node.run(ApiServer::start)?) } else { None };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["--propagation", "private", "bash", "--norc"]);
        command.env("ROOT", root).env("KPNG", env!("CARGO_BIN_EXE_kpng"));
        command.env_remove("KUBECONFIG").env_remove("KPNG_SKIP_NET");
        if let Some(api) = &api {
            command.env("KUBECONFIG", api.kubeconfig_path());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = network.node.run(move || command.spawn().unwrap());
        let input = shell.stdin.take().unwrap();
        let output = shell.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            use std::io::{BufRead, BufReader};
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let started = Vec::new();
        let mut this =
            Self { shell, input, lines, started, count: 0, _api: api, _network: network };
        let (code, printed) = this.run("set-up", SET_UP);
        assert_eq!(code, 0, "{printed}");
        Some(this)
    }

    /// Executes a command to its end. Returns its exit code and what it printed.
    pub(crate) fn run(&mut self, place: &str, command: &str) -> (i32, String) {
        // Cargo would build what is built.
        let command = command.replace("cargo run --release -- ", "kpng ");
        let end = "code=$?; echo; echo \"=done= $code\"";
        write!(self.input, "{{ {command}\n}} 2>&1 </dev/null; {end}\n").unwrap();
        self.input.flush().unwrap();
        let deadline = Instant::now() + LIMIT;
        let mut printed = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{place}: it does not end\n{printed}");
            };
            if let Some(code) = line.strip_prefix("=done= ") {
                // The line before is ours.
                let printed = printed.strip_suffix('\n').unwrap_or(&printed);
                return (code.parse().unwrap(), printed.to_owned());
            }
            printed += &line;
            printed.push('\n');
        }
    }

    /// Starts a command that goes on until [`Sandbox::stop`], and waits until it does its work.
    pub(crate) fn start(&mut self, place: &str, command: &str) {
        let log = self.launch(place, command);
        self.started.push((place.to_owned(), log));
    }

    /// Starts a command that goes on until the page ends, and waits until it does its work.
    pub(crate) fn keep(&mut self, place: &str, command: &str) {
        self.launch(place, command);
    }

    fn launch(&mut self, place: &str, command: &str) -> String {
        self.count += 1;
        let log = format!("/run/log-{}", self.count);
        let command =
            command.replace("cargo run --release -- ", "kpng ").replace("target/release/", "");
        // Without a comment that would hide the rest, and as itself, so that signals reach it.
        let command = command.split(" # ").next().unwrap_or_default().trim();
        let launch = format!("(exec {command}) >{log} 2>&1 </dev/null & echo $! >{log}.pid");
        let (code, printed) = self.run(place, &launch);
        assert_eq!(code, 0, "{place}\n{printed}");
        let start = Instant::now();
        loop {
            let (_, printed) = self.run(place, &format!("cat {log}"));
            let alive = format!("grep -q '^State:.[^Z]' /proc/$(cat {log}.pid)/status");
            let (gone, _) = self.run(place, &alive);
            let is_ready = READY.iter().any(|word| printed.contains(word));
            // Other programs say nothing of that kind.
            let is_other = !command.starts_with("kpng ") || command.contains(" shell ");
            let is_silent = is_other && start.elapsed() > Duration::from_secs(1);
            if gone != 0 || is_ready || is_silent {
                return log;
            }
            assert!(start.elapsed() < LIMIT, "{place}: it does not get ready\n{printed:.2000}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends what goes on, the last first. Each must end as it should.
    pub(crate) fn stop(&mut self) {
        for (place, log) in std::mem::take(&mut self.started).into_iter().rev() {
            let end = format!("kill $(cat {log}.pid) 2>/dev/null; wait $(cat {log}.pid)");
            let (code, _) = self.run(&place, &end);
            let (_, printed) = self.run(&place, &format!("cat {log}"));
            assert_eq!(code, 0, "{place}\n{printed:.2000}");
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The first process of the namespace takes all others with it.
        self.shell.kill().ok();
        self.shell.wait().ok();
    }
}
