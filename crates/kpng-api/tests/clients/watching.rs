//! Clients at work: the examples, and one in this process which is told the same.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use kpng_api::client::{Config, Connection, OpStream};
use kpng_api::proto::localv1::{Endpoint, Service, Set, Value, WatchReq, op_item::Op};
use kpng_api::tls::TlsFiles;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::programs::Program;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// An example client that goes on.
pub(crate) struct Watching {
    child: Child,
    printed: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    pub(crate) fn start(program: &Program, arguments: &[&str]) -> Self {
        let mut child = program.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, printed }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.printed.next_line()).await.expect("it prints");
        line.unwrap().expect("it goes on")
    }

    /// What it prints, through `sync`.
    pub(crate) async fn answer(&mut self) -> String {
        let mut answer = String::new();
        while !answer.ends_with("sync\n") {
            answer += &self.line().await;
            answer += "\n";
        }
        answer
    }

    /// So many lines, whatever they are.
    pub(crate) async fn lines(&mut self, count: usize) -> String {
        let mut lines = String::new();
        for _ in 0..count {
            lines += &self.line().await;
            lines += "\n";
        }
        lines
    }

    /// It ends, has nothing more to say, and had no trouble.
    pub(crate) async fn ends(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(self.printed.next_line().await.unwrap(), None);
    }
}

/// The client of this crate.
pub(crate) struct Rust {
    stream: OpStream<WatchReq>,
    request: WatchReq,
    asked: bool,
}

impl Rust {
    /// Begins to watch what Services mean on `node`.
    pub(crate) async fn watch(target: &str, node: &str, push: bool) -> Self {
        let targets = vec![target.parse().unwrap()];
        let config = Config { targets, tls: TlsFiles::default(), server_name: None };
        let connection = Connection::connect(&config).await.unwrap();
        let request = WatchReq { node_name: node.to_owned(), push, ..WatchReq::default() };
        let stream = connection.local(request.clone()).await.unwrap();
        Self { stream, request, asked: true }
    }

    /// The next answer, as the examples print it.
    pub(crate) async fn answer(&mut self) -> String {
        if !std::mem::replace(&mut self.asked, self.request.push) {
            self.stream.ask(self.request.clone());
        }
        let mut answer = String::new();
        while !answer.ends_with("sync\n") {
            let item = timeout(PATIENCE, self.stream.next()).await.expect("an answer comes");
            let op = item.unwrap().expect("the stream goes on").op.expect("an operation");
            match op {
                Op::Reset(_) => answer += "reset\n",
                Op::Sync(_) => answer += "sync\n",
                Op::Delete(gone) => {
                    writeln!(answer, "- {} {}", gone.set().as_str_name(), gone.path).unwrap();
                }
                Op::Set(value) => {
                    let of = value.r#ref.as_ref().unwrap();
                    let (set, path) = (of.set().as_str_name(), &of.path);
                    writeln!(answer, "+ {set} {path} {}", addresses(&value)).unwrap();
                }
            }
        }
        answer
    }
}

/// Decodes a Service or an Endpoint, and returns its addresses.
fn addresses(value: &Value) -> String {
    let ips = match value.r#ref.as_ref().unwrap().set() {
        Set::ServicesSet => {
            let service = Service::decode(&*value.bytes).unwrap();
            service.i_ps.and_then(|ips| ips.cluster_i_ps)
        }
        _ => Endpoint::decode(&*value.bytes).unwrap().i_ps,
    };
    let ips = ips.unwrap_or_default();
    format!("[{}]", [ips.v4, ips.v6].concat().join(" "))
}

/// Hashes in paths are opaque.
pub(crate) fn without_hashes(printed: &str) -> String {
    let hide = |word: &str| match word.rsplit_once('/') {
        Some((before, last)) if last.len() > 8 && u64::from_str_radix(last, 16).is_ok() => {
            format!("{before}/#")
        }
        _ => word.to_owned(),
    };
    let line = |line: &str| line.split(' ').map(hide).collect::<Vec<_>>().join(" ") + "\n";
    printed.lines().map(line).collect()
}
