//! The playground at work: it follows the state file, sends packets, and compares.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kpng_core::plan::Plan;
use kpng_core::store::{Revision, Writer};
use kpng_file::State;

use crate::change::{ask_during, is_asked};
use crate::flow::{Expected, Flow, Seen, flows};
use crate::{Counts, Error, Meanwhile, Picture, Result, Row, Scenario, StateFile, World};

/// How long a backend may take for a state.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it is waited for while somebody looks on.
const LIVE_PATIENCE: Duration = Duration::from_secs(2);

/// How many packets show a choice between two targets; each is missed with a probability of 2^-31.
const MANY: usize = 32;

/// How many lines of what happened are kept.
const LOG: usize = 50;

/// The proxy on the node: a pipeline that follows `writer`.
pub struct Proxy {
    /// The name of its backend.
    pub backend: String,
    /// Pods see who asks, where the plan does not masquerade.
    pub keeps_sources: bool,
    /// Where it takes the state from.
    pub writer: Writer,
    /// What it says.
    pub events: Receiver<InForce>,
}

impl Proxy {
    /// Hands a state over and waits until it is in force, if it is new or the first. What was said
    /// meanwhile is returned too.
    fn follow(
        &mut self,
        state: State,
        is_first: bool,
        patience: Duration,
    ) -> (Vec<InForce>, Result<()>) {
        let applied = self.writer.apply(state.into_batch());
        let mut events = Vec::new();
        // The first state is followed even if there is nothing in it.
        if applied.changed == 0 && !is_first {
            return (events, Ok(()));
        }
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = match self.events.recv_timeout(left) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => {
                    return (events, Err(Error::NotInForce(patience)));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return (events, Err(Error::Backend("it has ended".to_owned())));
                }
            };
            let outcome = match &event {
                InForce::Failed(why) => Some(Err(Error::Backend(why.clone()))),
                InForce::Unchanged => Some(Ok(())),
                InForce::Plan { revision, .. } => (*revision >= applied.revision).then_some(Ok(())),
            };
            events.push(event);
            if let Some(outcome) = outcome {
                return (events, outcome);
            }
        }
    }
}

/// What the pipeline came to.
#[derive(Debug)]
pub enum InForce {
    /// This plan is in force.
    Plan {
        /// The plan.
        plan: Plan,
        /// Up to which revision of the store.
        revision: Revision,
        /// How long it took.
        duration: Duration,
    },
    /// What changed does not matter to the node.
    Unchanged,
    /// The backend failed, for this reason. It tries again.
    Failed(String),
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The next step of the scenario.
    Next,
    /// Its first step.
    Restart,
}

/// What a thorough look at one flow showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFlow {
    /// What was asked, and what came of it.
    pub row: Row,
    /// What must come of it, for people.
    pub expected: String,
    /// It is as it must be.
    pub good: bool,
}

/// A flow, what must become of it, and what did.
#[derive(Clone, Debug)]
struct Watched {
    flow: Flow,
    expected: Expected,
    counts: Counts,
}

/// The playground.
pub struct Playground {
    world: World,
    proxy: Proxy,
    node: String,
    file: StateFile,
    scenario: Option<(Scenario, usize)>,
    plan: Plan,
    watched: Vec<Watched>,
    next: usize,
    problem: Option<String>,
    failed: Option<String>,
    meanwhile: Meanwhile,
    log: VecDeque<String>,
    said: usize,
}

impl Playground {
    /// A playground on `world`, where `proxy` serves the node called `node`. The first state of the
    /// scenario is written, if there is one, and in force when this returns.
    ///
    /// # Errors
    /// When the state file is of no use, or the backend fails.
    pub fn new(
        world: World,
        proxy: Proxy,
        node: String,
        file: StateFile,
        scenario: Option<Scenario>,
    ) -> Result<Self> {
        let mut playground = Self {
            world,
            proxy,
            node,
            file,
            scenario: scenario.map(|scenario| (scenario, 0)),
            plan: Plan::default(),
            watched: Vec::new(),
            next: 0,
            problem: None,
            failed: None,
            meanwhile: Meanwhile::default(),
            log: VecDeque::new(),
            said: 0,
        };
        playground.write_step()?;
        playground.follow_file_to_the_end()?;
        Ok(playground)
    }

    /// Goes to another step of the scenario. `false` when there is no such step.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn command(&mut self, command: Command) -> Result<bool> {
        let Some((scenario, step)) = &mut self.scenario else { return Ok(false) };
        let wanted = match command {
            Command::Restart => 0,
            Command::Next => *step + 1,
        };
        if wanted >= scenario.steps.len() {
            return Ok(false);
        }
        *step = wanted;
        self.write_step()?;
        Ok(true)
    }

    fn write_step(&mut self) -> Result<()> {
        let Some((scenario, step)) = self.scenario else { return Ok(()) };
        self.file.write(scenario.steps[step].0)
    }

    /// Takes over what changed in the file, and waits until it is in force.
    ///
    /// # Errors
    /// When the file is not valid, or the backend fails or takes too long.
    pub fn follow_file_to_the_end(&mut self) -> Result<()> {
        self.meanwhile = Meanwhile::default();
        match self.file.changed()? {
            Some(state) => self.follow(state, PATIENCE),
            None => Ok(()),
        }
    }

    /// What became of the connections during the last change.
    pub fn meanwhile(&self) -> &Meanwhile {
        &self.meanwhile
    }

    /// Gives a state to the proxy when its pods are there, waits until it is in force, and takes those
    /// pods away then that it does not have any more. Connections are made meanwhile.
    fn follow(&mut self, state: State, patience: Duration) -> Result<()> {
        for note in self.world.prepare(&state, &self.node) {
            self.say(note);
        }
        let asked = self.watched.iter().filter(|w| is_asked(&w.flow, &w.expected));
        let asked: Vec<_> = asked.cloned().collect();
        let flows: Vec<_> = asked.iter().map(|watched| watched.flow.clone()).collect();
        let is_first = self.plan.services().is_empty();
        let Self { world, proxy, .. } = self;
        let work = || proxy.follow(state, is_first, patience);
        let ((events, outcome), seen) = ask_during(world, &flows, work);
        for event in events {
            self.note(event);
        }
        self.judge(&asked, &seen);
        for note in self.world.settle() {
            self.say(note);
        }
        outcome
    }

    /// Compares what was seen during a change with what must have been. What went wrong is counted
    /// where it is shown.
    fn judge(&mut self, asked: &[Watched], seen: &[(usize, Seen)]) {
        let mut meanwhile = Meanwhile::default();
        for (index, seen) in seen {
            let before = &asked[*index];
            let after = self.watched.iter_mut().find(|watched| watched.flow == before.flow);
            let Some(after) = after.filter(|w| is_asked(&w.flow, &w.expected)) else { continue };
            meanwhile.connections += 1;
            let keeps_sources = self.proxy.keeps_sources;
            if before.expected.fits(seen, keeps_sources) || after.expected.fits(seen, keeps_sources)
            {
                continue;
            }
            after.count(seen, keeps_sources);
            let Row { service, from, to, .. } = after.row();
            meanwhile.failed.push(format!("{service} {from} → {to}: {}", seen.describe()));
        }
        if let Some(summary) = meanwhile.summary() {
            self.say(summary);
        }
        self.meanwhile = meanwhile;
    }

    /// Takes note of what the proxy says.
    fn note(&mut self, event: InForce) {
        match event {
            InForce::Unchanged => {}
            InForce::Failed(why) => self.failed = Some(why),
            InForce::Plan { plan, duration, .. } => {
                self.failed = None;
                self.say(format!(
                    "{} in force after {:.1} ms",
                    changes(&self.plan, &plan),
                    duration.as_secs_f64() * 1000.0
                ));
                self.plan = plan;
                self.look_again();
            }
        }
    }

    /// Works out what is to be asked. What must come of it as before keeps its counts.
    fn look_again(&mut self) {
        let mut old: BTreeMap<Flow, Watched> =
            self.watched.drain(..).map(|watched| (watched.flow.clone(), watched)).collect();
        for flow in flows(&self.plan) {
            let expected = flow.expected(&self.plan, &self.world);
            let same = old.remove(&flow).filter(|watched| watched.expected == expected);
            let new = || Watched { flow, expected, counts: Counts::default() };
            self.watched.push(same.unwrap_or_else(new));
        }
    }

    /// One turn: looks at the file and at the proxy, and sends a packet. Returns within seconds.
    pub fn turn(&mut self) {
        match self.file.changed() {
            Ok(None) => {}
            Ok(Some(state)) => {
                self.problem = None;
                // A failure is noted as all that the proxy says; what takes longer is heard of later.
                self.follow(state, LIVE_PATIENCE).unwrap_or(());
            }
            Err(error) => {
                self.problem = Some(format!("{error}; the last good state stays in force"));
            }
        }
        self.note_events();
        let Some(watched) = self.watched.get(self.next % self.watched.len().max(1)) else { return };
        let (index, flow) = (self.next % self.watched.len(), watched.flow.clone());
        self.next = index + 1;
        let seen = self.world.send(&flow);
        // A plan that came into force meanwhile decided differently, perhaps.
        if !self.note_events()
            && let Some(watched) = self.watched.get_mut(index)
        {
            watched.count(&seen, self.proxy.keeps_sources);
        }
    }

    /// Takes note of all that the proxy said. Whether it said something.
    fn note_events(&mut self) -> bool {
        let events: Vec<_> = self.proxy.events.try_iter().collect();
        let some = !events.is_empty();
        for event in events {
            self.note(event);
        }
        some
    }

    /// Asks everything, one flow after the other, so often that every choice shows, and compares with
    /// the plan.
    pub fn check(&self) -> impl Iterator<Item = CheckedFlow> {
        let check = |watched: &Watched| {
            let mut watched = Watched { counts: Counts::default(), ..watched.clone() };
            let times = match &watched.expected {
                Expected::Answers { pods, .. } => MANY * pods.len().max(1),
                Expected::Refused => 2,
                Expected::Silence => 1,
            };
            for _ in 0..times {
                let seen = self.world.send(&watched.flow);
                watched.count(&seen, self.proxy.keeps_sources);
            }
            let answered = watched.counts.answers.len();
            let all = match &watched.expected {
                Expected::Answers { sticky: true, .. } => answered == 1,
                Expected::Answers { pods, .. } => answered == pods.len(),
                Expected::Refused | Expected::Silence => true,
            };
            CheckedFlow {
                expected: watched.expected.describe(),
                good: all && watched.counts.wrong == 0,
                row: watched.row(),
            }
        };
        self.watched.iter().map(check)
    }

    /// The state is somebody else's work, not a step of the scenario.
    pub fn is_edited(&self) -> bool {
        self.file.is_edited()
    }

    /// What there is to see.
    pub fn picture(&self) -> Picture {
        let (mut step, mut title, mut look) = Default::default();
        if let Some((scenario, number)) = self.scenario {
            step = format!("{} {}/{}", scenario.name, number + 1, scenario.steps.len());
            title = scenario.steps[number].title().to_owned();
            look = scenario.steps[number].look();
            if self.file.is_edited() {
                title = "The state file as you edited it".to_owned();
                look = "n writes the next step of the scenario over it, r the first.".to_owned();
            }
        }
        let pods = self.world.pods().map(|(name, addresses, here)| {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            (name.to_owned(), addresses.join(" "), here)
        });
        Picture {
            backend: self.proxy.backend.clone(),
            step,
            title,
            look,
            file: self.file.shown().display().to_string(),
            problem: self.problem.clone().or_else(|| self.failed.clone()),
            rows: self.watched.iter().map(Watched::row).collect(),
            pods: pods.collect(),
            log: self.log.iter().cloned().collect(),
            said: self.said,
        }
    }

    fn say(&mut self, what: String) {
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(what);
        self.said += 1;
    }
}

impl Watched {
    fn count(&mut self, seen: &Seen, keeps_sources: bool) {
        let counts = &mut self.counts;
        counts.wrong += u64::from(!self.expected.fits(seen, keeps_sources));
        match seen {
            Seen::Answered { by, masqueraded } => {
                *counts.answers.entry(by.clone()).or_default() += 1;
                counts.masqueraded += u64::from(*masqueraded);
            }
            Seen::Refused => counts.refused += 1,
            Seen::Silence => counts.silent += 1,
        }
    }

    fn row(&self) -> Row {
        Row {
            service: self.flow.service.to_string(),
            from: self.flow.from.name(),
            to: format!("{} {}", self.flow.to, self.flow.protocol),
            counts: self.counts.clone(),
        }
    }
}

/// Which services differ, for people.
fn changes(before: &Plan, after: &Plan) -> String {
    let mut changed = Vec::new();
    for (service, plan) in after.services() {
        if before.service(service) != Some(plan) {
            changed.push(service.to_string());
        }
    }
    let gone = before.services().keys().filter(|service| after.service(service).is_none());
    changed.extend(gone.map(|service| format!("{service} (gone)")));
    if changed.is_empty() { "the rules are".to_owned() } else { changed.join(", ") }
}
