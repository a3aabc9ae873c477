//! The loop that keeps one kind of object up to date: list, watch, resume.
//!
//! The store is never emptied to be filled again. What is in it stays until the API server says that
//! it is different, through any number of broken connections, restarts and lost histories.

mod complaints;

use std::collections::{HashMap, HashSet};
use std::mem;
use std::time::{Duration, Instant};

use kpng_core::backoff::{Backoff, random};
use kpng_core::model::NamespacedName;
use kpng_core::store::{Batch, Kind};
use kube::client::Body;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::convert::Outcome;
use crate::envelope::{self, Event, EventType, Events};
use crate::request::{Accept, Failure, chunk, collect};
use crate::selectors::resource;
use crate::stats::KindStats;
use crate::watcher::Session;
use crate::wire::ObjectMeta;

/// How many events become one revision at most.
const MAX_BATCH: usize = 256;
/// Objects per page of a list, as client-go asks.
const PAGE: &str = "500";
/// The server ends a watch after this many seconds and up to twice as many (client-go: 5 to 10
/// minutes), so that load moves between servers.
const WATCH_SECONDS: f64 = 300.0;
/// After so many failures in a row that may be due to the resource version, everything is listed.
const MAX_STRIKES: u32 = 3;
/// Ends the initial events of a streaming list (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Where one kind stands. It survives connections.
#[derive(Debug)]
enum State {
    /// The store may lack objects, or have some that are gone. List, as a stream where the server
    /// offers it, otherwise in pages. A complete list leads to `Current`; a failure stays here.
    Unlisted,
    /// The store has everything up to this version. Watch from it. Events and bookmarks move the
    /// version; a broken connection changes nothing; a version that the server does not know any
    /// more leads to `Unlisted`.
    Current { resource_version: String },
}

/// How an attempt ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// A list is complete.
    List,
    /// The server ended a watch.
    Watch,
}

/// The loop of one kind.
#[derive(Debug)]
pub(crate) struct KindLoop {
    kind: Kind,
    state: State,
    listed_before: bool,
    /// Whether a streaming list is worth a try: until one is refused, and again for the next list.
    streaming: bool,
    strikes: u32,
    /// Something went wrong since the last watch: the server that comes back may know less.
    doubtful: bool,
    backoff: Backoff,
    /// The resource versions of objects that were complained about.
    complained: HashMap<NamespacedName, String>,
}

/// Writes that were gathered from events and are not applied yet.
#[derive(Debug, Default)]
struct Writes {
    batch: Batch,
    events: usize,
    /// The version that the store has with these writes.
    resource_version: Option<String>,
}

type Keys = HashSet<NamespacedName>;

impl KindLoop {
    pub(crate) fn new(kind: Kind, backoff: Backoff) -> Self {
        Self {
            kind,
            state: State::Unlisted,
            listed_before: false,
            streaming: true,
            strikes: 0,
            doubtful: false,
            backoff,
            complained: HashMap::new(),
        }
    }

    /// Keeps this kind up to date until the credentials are refused; returns the server's words.
    /// May be dropped at any time: what is applied to the store and what is remembered agree.
    pub(crate) async fn run(&mut self, session: &Session<'_>) -> String {
        // This server may offer what the last one did not, and know less.
        self.streaming = true;
        self.doubtful = true;
        loop {
            let started = Instant::now();
            let delay = match self.attempt(session).await {
                Ok(Ended::List) => Duration::ZERO,
                Ok(Ended::Watch) if started.elapsed() >= session.timing.short_watch => {
                    Duration::ZERO
                }
                Ok(Ended::Watch) => session.timing.delay(&mut self.backoff, started),
                Err(Failure::Unauthorized(message)) => {
                    self.report(
                        session,
                        &format!("the API server refuses the credentials: {message}"),
                    );
                    return message;
                }
                Err(failure) => self.after_failure(session, &failure, started),
            };
            sleep(delay).await;
        }
    }

    async fn attempt(&mut self, session: &Session<'_>) -> Result<Ended, Failure> {
        if self.doubtful {
            self.check_history(session).await?;
        }
        let seconds = format!("{:.0}", WATCH_SECONDS * (1.0 + random()));
        let common =
            [("watch", "1"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", seconds.as_str())];
        let (parameters, initial) = match &self.state {
            State::Unlisted if !self.streaming => return self.list(session).await,
            // No version means the newest: after a lost history nothing may go back in time.
            State::Unlisted => (
                [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")].to_vec(),
                Some(Keys::new()),
            ),
            State::Current { resource_version } => {
                (vec![("resourceVersion", resource_version.as_str())], None)
            }
        };
        let parameters = [common.as_slice(), &parameters].concat();
        let path = session.collections.path(self.kind, &parameters);
        self.watch(session, &path, initial).await
    }

    /// Lists everything again if the server is at an older version than we are: it was restored from
    /// a backup, or begins anew. A watch from a version in the server's future would say nothing.
    async fn check_history(&mut self, session: &Session<'_>) -> Result<(), Failure> {
        if let State::Current { resource_version: ours } = &self.state {
            let patience = session.timing.watch_patience;
            // No version means the newest.
            let path = session.collections.path(self.kind, &[("limit", "1")]);
            let opened = session.get(&path, Accept::List, patience).await?;
            let body = collect(opened.body, patience).await?;
            let list = envelope::list(opened.encoding, &body).map_err(Failure::Malformed)?;
            let theirs = list.metadata.resource_version;
            // KEP-5504: versions are decimal numbers that grow.
            let number = |version: &str| version.parse::<u64>().ok();
            if let (Some(ours), Some(theirs)) = (number(ours), number(&theirs))
                && theirs < ours
            {
                let kind = resource(self.kind);
                warn!(kind, ours, theirs, "the API server went back in time, listing again");
                self.state = State::Unlisted;
            }
        }
        self.doubtful = false;
        Ok(())
    }

    /// Lists in pages.
    async fn list(&mut self, session: &Session<'_>) -> Result<Ended, Failure> {
        // The first list may be as old as the server's cache, like kube-proxy's. A later one must
        // not be older than what is known: no version means the newest.
        let first = [("limit", PAGE), ("resourceVersion", "0")];
        let mut path = session
            .collections
            .path(self.kind, if self.listed_before { &first[..1] } else { &first[..] });
        let mut keys = Keys::new();
        let patience = session.timing.list_patience;
        loop {
            let opened = session.get(&path, Accept::List, patience).await?;
            let body = collect(opened.body, patience).await?;
            let mut batch = Batch::new();
            let page = session
                .target()
                .converter
                .page(self.kind, opened.encoding, &body, &mut batch)
                .map_err(Failure::Malformed)?;
            self.stats(session).puts.add(page.keys.len() as u64);
            self.stats(session).contact();
            for complaint in page.complaints {
                self.complain(session, complaint);
            }
            keys.extend(page.keys);
            let Some(token) = page.continue_token else {
                self.finish_list(session, &mut batch, keys);
                session.target().writer.apply(batch);
                self.state = State::Current { resource_version: page.resource_version };
                self.recovered(session);
                return Ok(Ended::List);
            };
            session.target().writer.apply(batch);
            let parameters = [("limit", PAGE), ("continue", token.as_str())];
            path = session.collections.path(self.kind, &parameters);
        }
    }

    /// Follows a watch. With `initial` it begins with a list, whose keys are collected there.
    async fn watch(
        &mut self,
        session: &Session<'_>,
        path: &str,
        mut initial: Option<Keys>,
    ) -> Result<Ended, Failure> {
        let opened = session.get(path, Accept::Watch, session.timing.watch_patience).await?;
        self.stats(session).watches.add(1);
        if initial.is_none() {
            self.recovered(session);
        }
        let open = session.open(self.kind);
        let mut body = opened.body;
        let mut events = Events::new(opened.encoding);
        loop {
            let next = match initial {
                None => chunk(&mut body).await?,
                Some(_) => initial_chunk(&mut body, session.timing.list_patience).await?,
            };
            let Some(mut piece) = next else { break };
            open.contact();
            self.stats(session).contact();
            let mut writes = Writes::default();
            // What is already here becomes one revision. Nothing is awaited before it is applied.
            let result = loop {
                events.push(&piece);
                let result = self.take_all(session, &mut events, &mut initial, &mut writes);
                match ready_chunk(&mut body).await {
                    Some(more) if result.is_ok() => piece = more,
                    _ => break result,
                }
            };
            self.apply(session, writes);
            result?;
        }
        if events.is_inside_event() {
            return Err(Failure::Connection("the watch ended inside an event".to_owned()));
        }
        if initial.is_some() {
            return Err(Failure::Connection("the watch ended inside its list".to_owned()));
        }
        Ok(Ended::Watch)
    }

    fn take_all(
        &mut self,
        session: &Session<'_>,
        events: &mut Events,
        initial: &mut Option<Keys>,
        writes: &mut Writes,
    ) -> Result<(), Failure> {
        while let Some(event) = events.next().map_err(Failure::Malformed)? {
            self.take(session, &event, initial, writes)?;
            if writes.events >= MAX_BATCH {
                self.apply(session, mem::take(writes));
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        session: &Session<'_>,
        event: &Event,
        initial: &mut Option<Keys>,
        writes: &mut Writes,
    ) -> Result<(), Failure> {
        let (stats, kind, object) = (self.stats(session), self.kind, &event.object);
        writes.events += 1;
        let outcome = match event.event_type {
            EventType::Put => {
                stats.puts.add(1);
                session.target().converter.put(kind, object, &mut writes.batch)
            }
            EventType::Deleted => {
                stats.deletes.add(1);
                session.target().converter.delete(kind, object, &mut writes.batch)
            }
            EventType::Bookmark => {
                stats.bookmarks.add(1);
                let metadata = object.metadata().unwrap_or_default();
                self.take_bookmark(session, metadata, initial, writes);
                return Ok(());
            }
            EventType::Error => {
                let status = object.decode().unwrap_or_default();
                return Err(Failure::of_event(&status));
            }
            EventType::Unknown => {
                debug!(kind = resource(kind), "an event of an unknown type is ignored");
                return Ok(());
            }
        };
        let Outcome { key, resource_version, triggered, complaint } = outcome;
        match initial {
            None => {
                if !resource_version.is_empty() {
                    writes.resource_version = Some(resource_version);
                }
                if let Some(time) = triggered {
                    writes.batch.triggered_at(time);
                }
            }
            Some(keys) => {
                let key = key.clone();
                match event.event_type {
                    EventType::Deleted => drop(key.map(|key| keys.remove(&key))),
                    _ => keys.extend(key),
                }
            }
        }
        match (complaint, key) {
            (Some(complaint), _) => self.complain(session, complaint),
            (None, Some(key)) => drop(self.complained.remove(&key)),
            (None, None) => {}
        }
        Ok(())
    }

    fn take_bookmark(
        &mut self,
        session: &Session<'_>,
        metadata: ObjectMeta,
        initial: &mut Option<Keys>,
        writes: &mut Writes,
    ) {
        if metadata.annotations.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true")
            && let Some(keys) = initial.take()
        {
            self.finish_list(session, &mut writes.batch, keys);
            self.recovered(session);
        }
        if initial.is_none() && !metadata.resource_version.is_empty() {
            writes.resource_version = Some(metadata.resource_version);
        }
    }

    /// What is not in a complete list does not exist.
    fn finish_list(&mut self, session: &Session<'_>, batch: &mut Batch, keys: Keys) {
        self.stats(session).lists.add(1);
        self.listed_before = true;
        self.streaming = true;
        self.complained.retain(|key, _| keys.contains(key));
        match self.kind {
            Kind::Services => batch.retain_services(keys),
            Kind::EndpointSlices => batch.retain_slices(keys),
            Kind::Nodes => batch.retain_nodes(keys.into_iter().map(|key| key.name).collect()),
        }
        batch.mark_synced(self.kind);
    }

    fn apply(&mut self, session: &Session<'_>, writes: Writes) {
        if !writes.batch.is_empty() {
            session.target().writer.apply(writes.batch);
        }
        if let Some(resource_version) = writes.resource_version {
            self.strikes = 0;
            self.state = State::Current { resource_version };
        }
    }

    /// Decides what to do about a failure, and for how long to do nothing.
    fn after_failure(
        &mut self,
        session: &Session<'_>,
        failure: &Failure,
        started: Instant,
    ) -> Duration {
        let listing = matches!(self.state, State::Unlisted);
        let problem = self.describe(failure);
        let kind = resource(self.kind);
        if listing
            && self.streaming
            && !matches!(failure, Failure::Busy { .. } | Failure::Connection(_))
        {
            debug!(kind, %failure, "no streaming list, listing in pages");
            self.streaming = false;
            return Duration::ZERO;
        }
        self.stats(session).errors.add(1);
        self.doubtful = true;
        match failure {
            Failure::Gone(_) | Failure::Refused(_) if !listing => {
                info!(kind, %failure, "listing again");
                self.state = State::Unlisted;
                return session.timing.delay(&mut self.backoff, started);
            }
            Failure::Gone(_) => self.listed_before = true,
            Failure::Server(_) | Failure::Malformed(_) => self.strikes += 1,
            _ => {}
        }
        if self.strikes >= MAX_STRIKES {
            self.strikes = 0;
            self.state = State::Unlisted;
        }
        self.report(session, &problem);
        let delay = session.timing.delay(&mut self.backoff, started);
        match failure {
            Failure::Busy { retry_after: Some(time), .. } => delay.max(*time),
            _ => delay,
        }
    }

    fn describe(&self, failure: &Failure) -> String {
        let verb = if matches!(self.state, State::Unlisted) { "list" } else { "watch" };
        let kind = resource(self.kind);
        match failure {
            Failure::Forbidden(message) => format!(
                "not allowed to {verb} {kind}: bind the ClusterRole system:node-proxier to this \
                 identity ({message})"
            ),
            failure => format!("cannot {verb} {kind}: {failure}"),
        }
    }

    /// Logs a problem, and once more only when it is another one.
    fn report(&self, session: &Session<'_>, problem: &str) {
        let kind = resource(self.kind);
        if self.stats(session).set_problem(Some(problem.to_owned())) {
            error!(kind, "{problem}; trying again, the last known state stays in force");
        } else {
            debug!(kind, "still: {problem}");
        }
    }

    fn recovered(&self, session: &Session<'_>) {
        if self.stats(session).set_problem(None) {
            info!(kind = resource(self.kind), "the API server is back");
        }
    }

    fn stats<'a>(&self, session: &Session<'a>) -> &'a KindStats {
        session.stats.kind(self.kind)
    }
}

async fn initial_chunk(
    body: &mut Body,
    patience: Duration,
) -> Result<Option<bytes::Bytes>, Failure> {
    match timeout(patience, chunk(body)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Server(format!("the streaming list stopped for {patience:?}"))),
    }
}

/// What arrived already, without waiting. The end and errors are left to the next [`chunk`].
async fn ready_chunk(body: &mut Body) -> Option<bytes::Bytes> {
    tokio::select! {
        biased;
        next = chunk(body) => next.ok().flatten(),
        () = std::future::ready(()) => None,
    }
}

#[cfg(test)]
mod tests;
