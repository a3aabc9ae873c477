//! Which crate may know which: ARCHITECTURE.md's table, enforced. Dependencies of tests are free.

use super::{File, Files};

/// What a crate may depend on.
struct Rule {
    name: &'static str,
    /// Crates of this workspace.
    own: &'static [&'static str],
    /// Others: only these if it has a list, else all but those that are one crate's business.
    only: Option<&'static [&'static str]>,
    /// The foreign things that are its business.
    knows: &'static [Foreign],
}

/// A foreign thing that is known to few crates, as dependencies show it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Foreign {
    Kubernetes,
    Grpc,
    Serialization,
    Kernel,
    CommandLine,
    Async,
}

impl Foreign {
    const ALL: [Self; 6] = [
        Self::Kubernetes,
        Self::Grpc,
        Self::Serialization,
        Self::Kernel,
        Self::CommandLine,
        Self::Async,
    ];

    fn dependencies(self) -> &'static [&'static str] {
        match self {
            Self::Kubernetes => &["kube", "k8s-openapi"],
            Self::Grpc => &["tonic", "prost", "tonic-prost", "tonic-health", "tonic-reflection"],
            Self::Serialization => &["serde", "serde_json", "serde-saphyr"],
            Self::Kernel => &["libc", "rustix"],
            Self::CommandLine => &["clap", "anyhow", "tracing-subscriber"],
            Self::Async => &["tokio", "hyper", "hyper-util", "tower"],
        }
    }
}

const BACKEND: &[&str] = &["kpng-core", "kpng-linux"];

const fn backend(name: &'static str, knows: &'static [Foreign]) -> Rule {
    Rule { name, own: BACKEND, only: None, knows }
}

const RULES: &[Rule] = &[
    Rule { name: "kpng-core", own: &[], only: Some(&["ipnet", "tokio"]), knows: &[Foreign::Async] },
    Rule {
        name: "kpng-kube",
        own: &["kpng-core"],
        only: None,
        knows: &[Foreign::Kubernetes, Foreign::Grpc, Foreign::Serialization, Foreign::Async],
    },
    Rule {
        name: "kpng-api",
        own: &["kpng-core"],
        only: None,
        // rustix for options of sockets.
        knows: &[Foreign::Grpc, Foreign::Async, Foreign::Kernel],
    },
    Rule {
        name: "kpng-file",
        own: &["kpng-core"],
        only: None,
        // rustix for inotify.
        knows: &[Foreign::Serialization, Foreign::Async, Foreign::Kernel],
    },
    Rule { name: "kpng-linux", own: &[], only: None, knows: &[Foreign::Kernel] },
    backend("kpng-nft", &[]),
    backend("kpng-iptables", &[]),
    backend("kpng-ipvs", &[]),
    backend("kpng-ebpf", &[Foreign::Kernel]),
    backend("kpng-userspace", &[Foreign::Async, Foreign::Kernel]),
    Rule { name: "kpng-vnet", own: &["kpng-linux"], only: None, knows: &[Foreign::Kernel] },
    Rule {
        name: "kpng-playground",
        own: &["kpng-core", "kpng-file", "kpng-linux", "kpng-vnet"],
        only: None,
        knows: &[],
    },
    Rule {
        name: "kpng-testkit",
        own: &["kpng-core", "kpng-linux", "kpng-vnet"],
        only: None,
        knows: &[Foreign::Kernel, Foreign::Serialization, Foreign::Async],
    },
];

/// Whoever composes knows everything.
const FREE: &[&str] = &["kpng", "xtask"];

/// Complains of dependencies in the wrong direction.
pub(super) fn check(files: &Files, complaints: &mut Vec<String>) {
    for file in files.0.iter().filter(|file| is_manifest(file)) {
        let package = file.path.trim_end_matches("/Cargo.toml");
        let name = package.rsplit('/').next().unwrap_or(package);
        let rule = RULES.iter().find(|rule| rule.name == name);
        if rule.is_none() && !FREE.contains(&name) {
            complaints.push(format!(
                "{}:1: a crate without a rule; say in xtask/src/tidy/crates.rs what it may know",
                file.path
            ));
        }
        for (line, dependency) in dependencies(&file.text) {
            let complaint = match rule {
                _ if dependency == "kpng-testkit" && name != "xtask" => {
                    Some("is for tests only".to_owned())
                }
                Some(rule) => rule.refuses(dependency),
                None => None,
            };
            if let Some(complaint) = complaint {
                complaints.push(format!(
                    "{}:{line}: {name} depends on {dependency}, which {complaint}; move what needs \
                     it to where it may be",
                    file.path
                ));
            }
        }
    }
}

fn is_manifest(file: &File) -> bool {
    let in_crates = file.path.starts_with("crates/") && file.path.matches('/').count() == 2;
    (in_crates || file.path.starts_with("xtask/")) && file.path.ends_with("/Cargo.toml")
}

impl Rule {
    /// Why the crate may not depend on `dependency`.
    fn refuses(&self, dependency: &str) -> Option<String> {
        if dependency.starts_with("kpng") {
            let refused = !self.own.contains(&dependency);
            return refused.then(|| format!("is none of {:?}", self.own));
        }
        if let Some(only) = self.only {
            let refused = !only.contains(&dependency);
            return refused.then(|| format!("is none of {only:?}"));
        }
        let foreign = Foreign::ALL.into_iter().find(|f| f.dependencies().contains(&dependency))?;
        let refused = !self.knows.contains(&foreign);
        refused.then(|| "is other crates' business".to_owned())
    }
}

/// The dependencies of a manifest with their lines, without those of tests and builds.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut section = "";
    for (number, line) in (1..).zip(manifest.lines().map(str::trim)) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_matches(['[', ']']);
            // `[dependencies.NAME]`
            if let Some((kind, name)) = section.rsplit_once('.')
                && is_dependencies(kind)
            {
                found.push((number, name));
            }
        } else if is_dependencies(section)
            && let Some((name, _)) = line.split_once(['=', '.'])
            && !line.starts_with('#')
        {
            found.push((number, name.trim()));
        }
    }
    found
}

/// `dependencies`, or `target.'…'.dependencies`.
fn is_dependencies(section: &str) -> bool {
    section == "dependencies" || section.ends_with(".dependencies")
}
