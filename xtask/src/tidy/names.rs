//! The names that the nft backend writes into the kernel are those that its README promises.

use std::collections::BTreeSet;

use super::Files;

const README: &str = "crates/kpng-nft/README.md";
const NAMES: &str = "crates/kpng-nft/src/names.rs";

/// Complains of names that only the code or only the README has.
pub(super) fn check(files: &Files, complaints: &mut Vec<String>) {
    let (Some(readme), Some(names)) = (files.get(README), files.get(NAMES)) else { return };
    let promised = promised(&readme.text);
    let written = written(&names.text);
    for (name, line) in &written {
        if !promised.contains(*name) {
            complaints.push(format!("{NAMES}:{line}: {name} is not in {README}; list it there"));
        }
    }
    let sources = files.rust().filter(|file| file.path.starts_with("crates/kpng-nft/src/"));
    let sources: Vec<_> = sources.map(|file| &file.text).collect();
    for name in &promised {
        // `service-to-…` begins names that are made while running.
        let stem = name.split('…').next().unwrap_or(name).trim_end_matches("-pod-");
        let is_word = stem.starts_with(char::is_alphabetic)
            && stem.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        let in_code = |text: &&String| {
            text.contains(&format!("\"{stem}")) || stem.ends_with('-') && is_composed(text, stem)
        };
        if is_word && !["ip", "ip6"].contains(&stem) && !sources.iter().any(in_code) {
            complaints.push(format!("{README}: nothing is called {name}; remove it from the list"));
        }
    }
}

/// `format!("{at}-to-{…}")` makes names that begin with `service-to-`.
fn is_composed(text: &str, stem: &str) -> bool {
    let (first, rest) = stem.split_once('-').unwrap_or((stem, ""));
    text.contains(&format!("\"{first}\"")) && text.contains(&format!("}}-{rest}"))
}

/// What is between backticks in the section `## Names`.
fn promised(readme: &str) -> BTreeSet<&str> {
    let section = readme.split_once("\n## Names\n").map_or("", |(_, rest)| rest);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section.split('`').skip(1).step_by(2).collect()
}

/// The constants and the names of sets, with their lines.
fn written(names: &str) -> Vec<(&str, usize)> {
    (1..)
        .zip(names.lines())
        .filter_map(|(number, line)| {
            let constant = line.contains("const ") && line.contains(": &str = ");
            let arm = line.trim().starts_with("Self::") && line.trim().ends_with("\",");
            let mut parts = line.split('"');
            (constant || arm).then(|| parts.nth(1).map(|name| (name, number)))?
        })
        .collect()
}
