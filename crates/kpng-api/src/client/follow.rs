//! The loop that keeps a store equal to what servers say.
//!
//! What is in force, the replica and the position are always of the same Sync; everything else may be
//! lost at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kpng_core::backoff::{Backoff, random};
use tokio::time::{sleep, timeout};
use tonic::Code;
use tracing::{debug, error, info, warn};

use super::Config;
use super::connect::{Connection, random_index, server_name};
use super::limits::Limits;
use super::replica::{Replica, Values};
use super::stats::{Connected, Stats};
use super::stream::OpStream;
use crate::address::Target;
use crate::error::Error;
use crate::proto::localv1::op_item::Op;
use crate::proto::localv1::{EmptyOp, OpItem, Position, Ref, Set};
use crate::{tls, wire};

/// One of the two APIs, with the store that is fed from it.
pub(super) trait Api {
    /// Values that mean something together only.
    type Unit: Ord + Clone + fmt::Display + Send + Sync;
    /// What a stream is asked with.
    type Request: Send + 'static;
    /// Writes to the store.
    type Batch: Default + Send;

    /// What to ask when we are at `have`.
    fn request(&self, have: Option<Position>) -> Self::Request;

    /// Asks.
    fn open(
        &self,
        connection: &Connection,
        request: Self::Request,
    ) -> impl Future<Output = Result<OpStream<Self::Request>, Error>> + Send;

    /// Where a value belongs.
    fn place(set: Set, path: &str) -> Place<'_, Self::Unit>;

    /// Writes what the values of a unit mean. What makes no sense is left out and returned.
    fn rebuild(&self, unit: &Self::Unit, values: &Values, batch: &mut Self::Batch)
    -> Vec<Rejected>;

    /// Puts writes in force, of changes the earliest of which was `triggered` then. After the
    /// `first` the store is complete.
    fn apply(&mut self, batch: Self::Batch, triggered: Option<SystemTime>, first: bool);
}

/// Where a value belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a, U> {
    /// In this unit, by this name.
    In(U, &'a str),
    /// Nowhere: it is of no use here.
    Nowhere,
    /// Its path makes no sense.
    Malformed,
}

/// A value that makes no sense.
#[derive(Debug)]
pub(super) struct Rejected {
    /// Its name in the unit.
    pub(super) name: Box<str>,
    pub(super) reason: String,
}

/// How many malformed paths are remembered, so that each is reported once.
const REMEMBERED_PATHS: usize = 256;

/// How many reports about a target are remembered, so that each is made once.
const REMEMBERED_REPORTS: usize = 16;

/// Follows one API.
pub(super) struct Follower<A: Api> {
    api: A,
    config: Config,
    limits: Limits,
    stats: Arc<Stats>,
    replica: Replica<A::Unit>,
    /// Of the last Sync, if its server gives positions.
    position: Option<Position>,
    ever_synced: bool,
    /// The values that are rejected now.
    rejected: BTreeMap<A::Unit, BTreeSet<Box<str>>>,
    malformed: BTreeSet<String>,
    targets: Vec<Experience>,
}

/// What is known about a target.
#[derive(Clone, Debug, Default)]
struct Experience {
    /// What was said about it since it last worked.
    reported: BTreeSet<String>,
    /// It is an old server, on grpc-go with its defaults. That ends the connection of a client that
    /// pings more than every 5 minutes, so those who do so would lose their stream every 40 seconds.
    old: bool,
}

/// How a stream ended, or why there is none.
struct Ended {
    error: Error,
    /// It gave a state.
    synced: bool,
}

impl<A: Api> Follower<A> {
    /// # Errors
    /// When `config` can never work.
    pub(super) fn new(
        api: A,
        config: Config,
        limits: Limits,
        stats: Arc<Stats>,
    ) -> Result<Self, Error> {
        if config.targets.is_empty() {
            return Err(Error::NoTarget);
        }
        if config.tls.is_set() {
            tls::client_config(&config.tls)?;
            config.targets.iter().try_for_each(|target| server_name(target, &config).map(drop))?;
        }
        Ok(Self {
            api,
            limits,
            stats,
            replica: Replica::new(),
            position: None,
            ever_synced: false,
            rejected: BTreeMap::new(),
            malformed: BTreeSet::new(),
            targets: vec![Experience::default(); config.targets.len()],
            config,
        })
    }

    /// Goes from server to server, for ever.
    pub(super) async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::new(self.limits.first_pause, self.limits.longest_pause);
        let mut failures = 0;
        let mut at = random_index(self.config.targets.len());
        loop {
            let target = self.config.targets[at].clone();
            let mut synced = false;
            let result = self.follow(at, &target, &mut synced).await;
            self.replica.abandon();
            let Err(error) = result else { continue };
            let denied = self.report(at, &Ended { error, synced });
            at = (at + 1) % self.config.targets.len();
            failures += 1;
            if synced {
                backoff.reset();
                failures = 1;
                sleep(backoff.next_delay() + self.limits.spread.mul_f64(random())).await;
            } else if failures >= self.config.targets.len() {
                failures = 0;
                let least = if denied { self.limits.denied_pause } else { Duration::ZERO };
                let jitter = 1.0 - random() / 3.0;
                sleep(backoff.next_delay().max(least.mul_f64(jitter))).await;
            }
        }
    }

    /// Follows one server until that fails, or is better done with another connection.
    async fn follow(&mut self, at: usize, target: &Target, synced: &mut bool) -> Result<(), Error> {
        let may_ping = !self.targets[at].old;
        let limits = Limits { ping: self.limits.ping.filter(|_| may_ping), ..self.limits };
        let connection = Connection::to(target, &self.config, limits).await?;
        let request = self.api.request(self.position.clone());
        let mut stream = self.api.open(&connection, request).await?;
        let _connected = Connected::new(&self.stats);
        debug!("{target} has accepted the stream");
        loop {
            let Some(OpItem { op }) = self.next(at, &mut stream, *synced).await? else {
                return Err(Error::Ended { target: target.clone() });
            };
            match op {
                Some(Op::Reset(_)) => self.replica.reset(),
                Some(Op::Set(value)) => self.stage(value.r#ref, Some(value.bytes)),
                Some(Op::Delete(path)) => self.stage(Some(path), None),
                Some(Op::Sync(sync)) => {
                    self.sync(sync);
                    self.targets[at].old = self.position.is_none();
                    if self.targets[at].old {
                        if may_ping {
                            debug!("{target} is an old server: connecting again, without pings");
                            return Ok(());
                        }
                        // It answers one request at a time.
                        stream.ask(self.api.request(None));
                    }
                    if !std::mem::replace(synced, true) {
                        self.targets[at].reported.clear();
                        info!("following {target}");
                    }
                }
                // Of a later version of the API.
                None => {}
            }
            if self.replica.staged_bytes() > self.limits.answer {
                let limit = self.limits.answer;
                return Err(Error::LongAnswer { target: target.clone(), limit });
            }
        }
    }

    /// The next operation of a stream. A server that gives no state is left for another, if there is
    /// one; that it gives none is worth a word.
    async fn next(
        &mut self,
        at: usize,
        stream: &mut OpStream<A::Request>,
        synced: bool,
    ) -> Result<Option<OpItem>, Error> {
        if synced {
            return stream.next().await;
        }
        if let Ok(next) = timeout(self.limits.first_state, stream.next()).await {
            return next;
        }
        let error = Error::NoState { target: self.config.targets[at].clone() };
        if self.config.targets.len() > 1 {
            return Err(error);
        }
        if self.targets[at].reported.insert(error.to_string()) {
            warn!("{error}; waiting for it");
        }
        stream.next().await
    }

    /// Takes an operation, which counts from Sync on.
    fn stage(&mut self, path: Option<Ref>, value: Option<Vec<u8>>) {
        self.stats.operations.add(1);
        let Ref { set, path } = path.unwrap_or_default();
        let set = Set::try_from(set).unwrap_or(Set::UnknownSet);
        match A::place(set, &path) {
            Place::In(unit, name) => self.replica.put(unit, name, value),
            Place::Nowhere => {}
            Place::Malformed => {
                if self.malformed.len() < REMEMBERED_PATHS && self.malformed.insert(path.clone()) {
                    self.stats.rejected.add(1);
                    warn!("rejected a value of {} at {path:?}: no such path", set.as_str_name());
                }
            }
        }
    }

    /// Puts in force what was received.
    fn sync(&mut self, sync: EmptyOp) {
        let changed = self.replica.commit();
        let mut batch = A::Batch::default();
        for unit in changed {
            let rejected = self.api.rebuild(&unit, self.replica.values(&unit), &mut batch);
            self.reject(unit, rejected);
        }
        let first = !std::mem::replace(&mut self.ever_synced, true);
        self.api.apply(batch, wire::triggered(&sync), first);
        self.position = sync.position;
        self.stats.syncs.add(1);
    }

    /// Notes which values of a unit are rejected, and says so of those that were not before.
    fn reject(&mut self, unit: A::Unit, rejected: Vec<Rejected>) {
        let before = self.rejected.remove(&unit).unwrap_or_default();
        let mut names = BTreeSet::new();
        for Rejected { name, reason } in rejected {
            if !before.contains(&name) {
                self.stats.rejected.add(1);
                let part = if name.is_empty() { "" } else { ", endpoint " };
                warn!("rejected {unit}{part}{name}: {reason}");
            }
            names.insert(name);
        }
        if !names.is_empty() {
            self.rejected.insert(unit, names);
        }
    }

    /// Says why there is no stream, if that is new. Whether the server refuses us.
    fn report(&mut self, at: usize, Ended { error, synced }: &Ended) -> bool {
        let advice = match error {
            Error::Stream { code, .. } => advice(*code),
            _ => None,
        };
        if *synced {
            warn!("{error}; the last state stays in force until a server answers");
            return advice.is_some();
        }
        self.stats.failures.add(1);
        let text = error.to_string();
        let reported = &mut self.targets[at].reported;
        if reported.len() >= REMEMBERED_REPORTS {
            reported.clear();
        }
        // The same trouble has several texts, by how far a connection came.
        if !reported.insert(text.clone()) {
            debug!("again: {text}");
        } else {
            match advice {
                Some(advice) => error!("{text}; {advice}"),
                None => warn!("{text}; trying again"),
            }
        }
        advice.is_some()
    }
}

/// What to do about a server that refuses.
fn advice(code: Code) -> Option<&'static str> {
    match code {
        Code::Unauthenticated => Some("give a client certificate that the server accepts"),
        Code::PermissionDenied => Some(
            "check the node's name, the common name of the client certificate, and what the server \
             allows",
        ),
        Code::Unimplemented => {
            Some("check that this is the address of a kpng server, and that it serves this API")
        }
        _ => None,
    }
}
