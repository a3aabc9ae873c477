//! `watch`: what a kpng server says, as it says it. For people, or as lines of JSON for programs.

mod print;

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use kpng_api::client::{Config, Connection, OpStream};
use kpng_api::error::Error;
use kpng_api::proto::globalv1::GlobalWatchReq;
use kpng_api::proto::localv1::op_item::Op;
use kpng_api::proto::localv1::{OpItem, Position, WatchReq};
use kpng_core::backoff::Backoff;
use tokio::io::{AsyncWriteExt, Stdout};
use tracing::warn;

use crate::cli::{WatchArgs, WatchCommand};

use print::{Json, Printer, Readable};

/// So much text is printed at once.
const BUFFER: usize = 64 << 10;

/// Prints what a server says, until the first complete state or for ever.
pub(super) async fn run(
    config: &Config,
    args: &WatchArgs,
    what: WatchCommand,
) -> anyhow::Result<()> {
    let printer: Box<dyn Printer> =
        if args.json { Box::new(Json::new()) } else { Box::new(Readable::new()) };
    let out = Out { stdout: tokio::io::stdout(), text: String::new() };
    let mut watch = Watch { printer, out, once: args.once, position: None };
    let result = match what {
        WatchCommand::Local { node_name } => {
            let node = super::node::name(node_name.as_deref())?;
            watch.follow(config, &Local(node.to_string())).await
        }
        WatchCommand::Global => watch.follow(config, &Global).await,
    };
    match result {
        Err(End::Stream(error)) => Err(error.into()),
        // Who read has gone: the end of a shell's pipe.
        Err(End::Output(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// What is asked for. With all that the server knows.
trait Api {
    type Request;

    fn request(&self, have: Option<Position>) -> Self::Request;

    fn name(&self) -> String;

    async fn open(
        &self,
        connection: &Connection,
        request: Self::Request,
    ) -> Result<OpStream<Self::Request>, Error>;
}

struct Local(String);

impl Api for Local {
    type Request = WatchReq;

    fn request(&self, have: Option<Position>) -> WatchReq {
        WatchReq { node_name: self.0.clone(), push: true, have, details: true }
    }

    fn name(&self) -> String {
        format!("local {}", self.0)
    }

    async fn open(&self, connection: &Connection, request: WatchReq) -> Result<OpStream, Error> {
        connection.local(request).await
    }
}

struct Global;

impl Api for Global {
    type Request = GlobalWatchReq;

    fn request(&self, have: Option<Position>) -> GlobalWatchReq {
        GlobalWatchReq { push: true, have, details: true }
    }

    fn name(&self) -> String {
        "global".to_owned()
    }

    async fn open(
        &self,
        connection: &Connection,
        request: GlobalWatchReq,
    ) -> Result<OpStream<GlobalWatchReq>, Error> {
        connection.global(request).await
    }
}

/// Why there is nothing more to print.
enum End {
    Stream(Error),
    Output(std::io::Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

struct Watch {
    printer: Box<dyn Printer>,
    out: Out,
    once: bool,
    position: Option<Position>,
}

impl Watch {
    /// Goes from server to server, until one has given a state with `once`.
    async fn follow<A: Api>(&mut self, config: &Config, api: &A) -> Result<(), End> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        let mut reported = None;
        loop {
            let mut synced = false;
            let error = match self.stream(config, api, &mut synced).await {
                Err(End::Stream(error)) if !self.once => error,
                other => return other,
            };
            if synced {
                backoff.reset();
                reported = None;
            }
            let text = error.to_string();
            if reported.as_ref() != Some(&text) {
                warn!("{text}; trying again");
                reported = Some(text);
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Prints one stream. It ends well after the first state with `once`.
    async fn stream<A: Api>(
        &mut self,
        config: &Config,
        api: &A,
        synced: &mut bool,
    ) -> Result<(), End> {
        let connection = Connection::connect(config).await?;
        let request = || api.request(Some(self.position.clone().unwrap_or_default()));
        let mut operations = api.open(&connection, request()).await?;
        self.printer.requested(&mut self.out.text, &api.name(), &connection.target().to_string());
        self.out.flush().await?;
        let mut began = None;
        loop {
            let Some(OpItem { op }) = operations.next().await? else {
                return Err(Error::Ended { target: connection.target().clone() }.into());
            };
            // Of a later version of the API.
            let Some(op) = op else { continue };
            let began_at = *began.get_or_insert_with(|| {
                self.printer.received(&mut self.out.text, SystemTime::now());
                Instant::now()
            });
            self.printer.operation(&mut self.out.text, &op, began_at.elapsed());
            let Op::Sync(sync) = op else {
                if self.out.text.len() > BUFFER {
                    self.out.flush().await?;
                }
                continue;
            };
            (*synced, began) = (true, None);
            self.out.flush().await?;
            if self.once {
                return Ok(());
            }
            self.position = sync.position;
            if self.position.is_none() {
                // An old server: it answers one request at a time.
                operations.ask(api.request(Some(Position::default())));
            }
        }
    }
}

/// Standard output, which may be slow: meanwhile the connection is kept alive.
struct Out {
    stdout: Stdout,
    text: String,
}

impl Out {
    async fn flush(&mut self) -> std::io::Result<()> {
        self.stdout.write_all(self.text.as_bytes()).await?;
        self.text.clear();
        self.stdout.flush().await
    }
}
