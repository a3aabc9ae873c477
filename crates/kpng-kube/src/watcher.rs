//! The watcher: one client, three loops on it, and a probe that notices when nobody is there.
//!
//! All of it is one future. Dropping it at any moment leaves a consistent store.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kpng_core::backoff::Backoff;
use kpng_core::store::{Kind, Writer};
use kube::Client;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::convert::Converter;
use crate::events::{self, Recorder};
use crate::request::{self, Accept, Failure, Opened};
use crate::selectors::Collections;
use crate::stats::Stats;
use crate::watch::KindLoop;
use crate::{Config, Error};

/// Keeps a store equal to what an API server says.
#[derive(Debug)]
pub struct Watcher {
    config: Config,
    collections: Collections,
    target: Mutex<Target>,
    stats: Arc<Stats>,
    timing: Timing,
    /// Who takes Events, and who writes them.
    events: Option<(Recorder, events::Writer)>,
}

/// What all loops write to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) converter: Converter,
    pub(crate) writer: Writer,
}

/// How patient the watcher is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// The longest delays after the first failure and after many; a third less is possible.
    pub(crate) backoff: (Duration, Duration),
    /// An attempt that lasted this long was a success: the next failure is the first again.
    pub(crate) healthy: Duration,
    /// After this long without a word on any watch, the server is asked for one.
    pub(crate) silence: Duration,
    /// How long that may take.
    pub(crate) probe: Duration,
    /// How long a list may take to begin, and how long it may pause.
    pub(crate) list_patience: Duration,
    /// How long a watch may take to begin.
    pub(crate) watch_patience: Duration,
    /// A watch that the server ends before this time was a failure.
    pub(crate) short_watch: Duration,
}

impl Timing {
    /// A server that is gone is noticed within 25 s. Back-off as client-go's reflector has it: at
    /// least 800 ms, at most 30 s.
    const DEFAULT: Self = Self {
        backoff: (Duration::from_millis(1200), Duration::from_secs(30)),
        healthy: Duration::from_secs(30),
        silence: Duration::from_secs(15),
        probe: Duration::from_secs(10),
        list_patience: Duration::from_secs(60),
        watch_patience: Duration::from_secs(25),
        short_watch: Duration::from_secs(1),
    };

    fn new_backoff(&self) -> Backoff {
        let (min, max) = self.backoff;
        Backoff::new(min, max)
    }

    /// The delay after an attempt that began at `started`.
    pub(crate) fn delay(&self, backoff: &mut Backoff, started: Instant) -> Duration {
        if started.elapsed() >= self.healthy {
            backoff.reset();
        }
        backoff.next_delay()
    }
}

impl Watcher {
    /// A watcher that will write into `writer`.
    ///
    /// # Errors
    /// [`Error::ServiceProxyName`]. Nothing is contacted yet.
    pub fn new(config: Config, writer: Writer) -> Result<Self, Error> {
        Self::with_timing(config, writer, Timing::DEFAULT)
    }

    pub(crate) fn with_timing(
        config: Config,
        writer: Writer,
        timing: Timing,
    ) -> Result<Self, Error> {
        let collections = Collections::new(config.service_proxy_name.as_deref(), &config.nodes)?;
        let converter = Converter::new(config.selection.clone());
        let target = Mutex::new(Target { converter, writer });
        Ok(Self { config, collections, target, stats: Arc::default(), timing, events: None })
    }

    /// The watcher's numbers, for metrics. They outlive it.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Writes Kubernetes Events too: about objects that are rejected, and what the recorder is told.
    /// `instance` names this process in them, as the name of the node does.
    pub fn record_events(&mut self, instance: &str) -> Recorder {
        let (recorder, writer) = events::channel(instance, self.stats());
        self.events = Some((recorder.clone(), writer));
        recorder
    }

    /// Watches until `shutdown` completes; then the store is closed for its readers. Whatever the
    /// API server does, it goes on: problems are logged, counted, and retried with back-off.
    ///
    /// # Errors
    /// When no client can be made at the start: the kubeconfig, the server's URL or the credentials
    /// are unusable. Later the same is only a problem that may pass.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let (client, server) = self.config.client().await?;
        info!(server, "following the API server");
        let (recorder, writer) = self.events.take().unzip();
        tokio::select! {
            never = self.sessions(client, recorder.as_ref(), writer) => match never {},
            () = shutdown => Ok(()),
        }
    }

    /// One session after the other. A session is the life of a client.
    async fn sessions(
        &self,
        mut client: Client,
        recorder: Option<&Recorder>,
        mut writer: Option<events::Writer>,
    ) -> Infallible {
        let kind_loop = |kind| KindLoop::new(kind, self.timing.new_backoff());
        let [mut services, mut slices, mut nodes] = Kind::ALL.map(kind_loop);
        let mut backoff = self.timing.new_backoff();
        loop {
            let started = Instant::now();
            let session = Session::new(self, &client, recorder);
            let reason = tokio::select! {
                reason = services.run(&session) => reason,
                reason = slices.run(&session) => reason,
                reason = nodes.run(&session) => reason,
                reason = session.probe() => reason,
                never = write_events(writer.as_mut(), &session) => match never {},
            };
            warn!("reconnecting to the API server: {reason}");
            self.stats.reconnects.add(1);
            sleep(self.timing.delay(&mut backoff, started)).await;
            match self.config.client().await {
                Ok((new, _)) => client = new,
                Err(error) => error!("{error}; going on with the old configuration"),
            }
        }
    }
}

async fn write_events(writer: Option<&mut events::Writer>, session: &Session<'_>) -> Infallible {
    match writer {
        Some(writer) => writer.run(session).await,
        None => std::future::pending().await,
    }
}

/// What the loops share while one client lives.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    client: ClientRef<'a>,
    target: &'a Mutex<Target>,
    pub(crate) collections: &'a Collections,
    pub(crate) stats: &'a Stats,
    pub(crate) timing: &'a Timing,
    /// Who takes Events, if somebody does.
    pub(crate) recorder: Option<&'a Recorder>,
    /// For each kind with an open watch: when something came last.
    contacts: Mutex<[Option<Instant>; Kind::ALL.len()]>,
}

/// kube's client has no `Debug`.
struct ClientRef<'a>(&'a Client);

impl std::fmt::Debug for ClientRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl<'a> Session<'a> {
    fn new(watcher: &'a Watcher, client: &'a Client, recorder: Option<&'a Recorder>) -> Self {
        Self {
            client: ClientRef(client),
            target: &watcher.target,
            collections: &watcher.collections,
            stats: &watcher.stats,
            timing: &watcher.timing,
            recorder,
            contacts: Mutex::default(),
        }
    }

    pub(crate) fn client(&self) -> &'a Client {
        self.client.0
    }

    /// The converter and the store. Never held across an await.
    pub(crate) fn target(&self) -> MutexGuard<'a, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn get(
        &self,
        path: &str,
        accept: Accept,
        patience: Duration,
    ) -> Result<Opened, Failure> {
        request::get(self.client.0, path, accept, patience).await
    }

    /// Says that a watch of this kind is open, until the result is dropped.
    pub(crate) fn open(&self, kind: Kind) -> OpenWatch<'_> {
        let open = OpenWatch { contacts: &self.contacts, kind };
        open.contact();
        open
    }

    /// Returns when watches are open, all are silent, and the server does not answer a question
    /// either. Watches may be silent for a minute on a quiet cluster; a dead or hung server is
    /// never told apart from that by waiting.
    async fn probe(&self) -> String {
        loop {
            let Some(silence) = self.silence() else {
                sleep(self.timing.silence).await;
                continue;
            };
            if let Some(remaining) = self.timing.silence.checked_sub(silence)
                && !remaining.is_zero()
            {
                sleep(remaining).await;
                continue;
            }
            if let Err(failure) = self.ask().await {
                return format!("nothing heard for {:?}, and then: {failure}", self.timing.silence);
            }
            for contact in self.lock_contacts().iter_mut().flatten() {
                *contact = Instant::now();
            }
        }
    }

    /// Any answer but a failure of the server will do. Everybody may ask for the version.
    async fn ask(&self) -> Result<(), Failure> {
        let question = async {
            let opened = self.get("/version", Accept::List, self.timing.probe).await?;
            request::collect(opened.body, self.timing.probe).await
        };
        match timeout(self.timing.probe, question).await {
            Ok(Err(failure @ (Failure::Connection(_) | Failure::Server(_)))) => Err(failure),
            Ok(_) => Ok(()),
            Err(_) => {
                let patience = self.timing.probe;
                Err(Failure::Connection(format!("no answer within {patience:?}")))
            }
        }
    }

    /// For how long all open watches have been silent; `None` when none is open.
    fn silence(&self) -> Option<Duration> {
        self.lock_contacts().iter().flatten().map(Instant::elapsed).min()
    }

    fn lock_contacts(&self) -> MutexGuard<'_, [Option<Instant>; Kind::ALL.len()]> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open watch of one kind.
#[derive(Debug)]
pub(crate) struct OpenWatch<'a> {
    contacts: &'a Mutex<[Option<Instant>; Kind::ALL.len()]>,
    kind: Kind,
}

impl OpenWatch<'_> {
    /// Something came.
    pub(crate) fn contact(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, contact: Option<Instant>) {
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        contacts[self.kind as usize] = contact;
    }
}

impl Drop for OpenWatch<'_> {
    fn drop(&mut self) {
        self.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_lasted_starts_over() {
        let timing = |healthy| Timing { healthy, ..Timing::DEFAULT };
        let (min, max) = Timing::DEFAULT.backoff;
        let last_of_many = |timing: Timing| {
            let mut backoff = timing.new_backoff();
            (0..10).map(|_| timing.delay(&mut backoff, Instant::now())).last().unwrap()
        };
        assert!(last_of_many(timing(Duration::ZERO)) <= min);
        let delay = last_of_many(timing(Duration::from_secs(3600)));
        assert!(delay > max / 2 && delay <= max, "{delay:?}");
    }
}
