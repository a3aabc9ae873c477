//! Guided tours: states of a small cluster, one after the other, each with what to look at.
//!
//! The states are plain Kubernetes manifests. The comment at their top is what is shown: the first
//! line says what happened, the others what to look at.

/// A sequence of states.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Its states, at least one.
    pub steps: &'static [Step],
}

/// One state.
#[derive(Clone, Copy, Debug)]
pub struct Step(
    /// The manifests, with a comment at the top.
    pub &'static str,
);

macro_rules! steps {
    ($name:literal: $($number:literal),*) => {
        &[$(Step(include_str!(concat!("scenarios/", $name, "/", $number, ".yaml")))),*]
    };
}

/// All scenarios; the first is shown when none is asked for.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tour",
        about: "cluster IPs, a node port, UDP, a service without endpoints",
        steps: steps!("tour": 1, 2, 3),
    },
    Scenario {
        name: "rolling-update",
        about: "pods become ready, terminate and go, and nothing is refused",
        steps: steps!("rolling-update": 1, 2, 3, 4),
    },
    Scenario {
        name: "zone-hints",
        about: "traffic stays in its zone, as long as that has endpoints",
        steps: steps!("zone-hints": 1, 2, 3),
    },
    Scenario {
        name: "local-policy",
        about: "externalTrafficPolicy Local, with and without endpoints on the node",
        steps: steps!("local-policy": 1, 2, 3),
    },
    Scenario {
        name: "affinity",
        about: "clients stay with their pod, until it goes",
        steps: steps!("affinity": 1, 2, 3),
    },
    Scenario {
        name: "source-ranges",
        about: "who may reach a load balancer address, and who is dropped",
        steps: steps!("source-ranges": 1, 2, 3),
    },
    Scenario {
        name: "terminating",
        about: "terminating pods take over when nobody is ready",
        steps: steps!("terminating": 1, 2, 3),
    },
];

impl Scenario {
    /// The scenario called `name`.
    pub fn find(name: &str) -> Option<Self> {
        SCENARIOS.iter().copied().find(|scenario| scenario.name == name)
    }

    /// All scenarios, a line each, for people.
    pub fn list() -> String {
        let line = |scenario: &Self| format!("{:<16} {}\n", scenario.name, scenario.about);
        SCENARIOS.iter().map(line).collect()
    }
}

impl Step {
    /// What happened.
    pub fn title(self) -> &'static str {
        self.comment().next().unwrap_or_default()
    }

    /// What to look at.
    pub fn look(self) -> String {
        self.comment().skip(1).collect::<Vec<_>>().join(" ")
    }

    fn comment(self) -> impl Iterator<Item = &'static str> {
        self.0.lines().map_while(|line| line.strip_prefix('#')).map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_a_valid_state_and_says_what_to_look_at() {
        for scenario in SCENARIOS {
            for step in scenario.steps {
                assert!(!step.title().is_empty() && !step.look().is_empty(), "{}", scenario.name);
                let state = kpng_file::parse(step.0, &kpng_file::Options::default());
                let state = state.unwrap_or_else(|e| panic!("{}: {e}", scenario.name));
                assert!(!state.services.is_empty());
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = SCENARIOS.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
