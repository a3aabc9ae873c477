//! The documentation does what it says: every command line in it is executed as it stands there, and
//! what it shows is compared with what is printed.
//!
//! A block of the language `console` has commands after `$ ` and what they print; `…` stands for any text.
//! A block of the language `sh` has commands only. What follows the language says what else there is to know:
//! `goes on` for commands that run until they are stopped, `not run: REASON` for what a test cannot do.
//! A command that ends in ` &` runs on until the page ends. `<!-- beforehand: COMMAND -->` is executed
//! too, unseen by readers. Commands run one after the other in a [`sandbox`] for each page.

#![cfg(all(feature = "nft", feature = "playground"))]
#![expect(clippy::disallowed_methods, reason = "commands are executed")]
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]
#![expect(clippy::print_stdout, reason = "what is not run must be said where it is seen")]

#[path = "docs/names.rs"]
mod names;
#[path = "docs/page.rs"]
mod page;
#[path = "docs/sandbox.rs"]
mod sandbox;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use page::{Manner, Page, Step};
use sandbox::Sandbox;

/// The pages with commands. One test each, so that they run side by side.
const PAGES: [&str; 8] = [
    "README.md",
    "docs/backends.md",
    "docs/change.md",
    "docs/explain.md",
    "docs/packet.md",
    "docs/playground.md",
    "docs/troubleshooting.md",
    "docs/web.md",
];

/// What has not arrived yet may come within this time.
const PATIENCE: Duration = Duration::from_secs(30);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn check(path: &str) {
    let page = Page::read(&root().join(path));
    let mut sandbox = None;
    for block in &page.blocks {
        if let Manner::NotRun(reason) = &block.manner {
            println!("{path}:{}: not run: {reason}", block.line);
            continue;
        }
        if sandbox.is_none() {
            let Some(new) = Sandbox::new(&root(), page.has_cluster()) else { return };
            sandbox = Some(new);
        }
        let sandbox = sandbox.as_mut().unwrap();
        for step in &block.steps {
            let place = format!("{path}:{}: {}", step.line, step.command);
            match (&block.manner, step.command.strip_suffix(" &")) {
                (Manner::GoesOn, _) => sandbox.start(&place, &step.command),
                (_, Some(command)) => sandbox.keep(&place, command),
                (_, None) => run(sandbox, &place, step),
            }
        }
        if matches!(block.manner, Manner::GoesOn) {
            sandbox.stop();
        }
    }
}

/// Executes a command that ends, and compares what it prints, as soon as it is as shown.
fn run(sandbox: &mut Sandbox, place: &str, step: &Step) {
    let start = Instant::now();
    loop {
        let (code, printed) = sandbox.run(place, &step.command);
        let Some(shown) = &step.shown else {
            // That there are differences is an answer.
            let is_good = code == 0 || (code == 1 && step.command.starts_with("kpng diff "));
            assert!(is_good, "{place}\n{printed}");
            return;
        };
        if page::matches(shown, &printed) {
            return;
        }
        let late = start.elapsed() > PATIENCE;
        assert!(!late, "{place}\nshown:\n{shown}\nprinted:\n{printed}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn readme() {
    check("README.md");
}

#[test]
fn backends() {
    check("docs/backends.md");
}

#[test]
fn change() {
    check("docs/change.md");
}

#[test]
fn explain() {
    check("docs/explain.md");
}

#[test]
fn packet() {
    check("docs/packet.md");
}

#[test]
fn playground() {
    check("docs/playground.md");
}

#[test]
fn troubleshooting() {
    check("docs/troubleshooting.md");
}

#[test]
fn web() {
    check("docs/web.md");
}

/// No page is forgotten.
#[test]
fn all_pages_with_commands_are_checked() {
    let mut with_commands = BTreeSet::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if is_page && !Page::read(&path).blocks.is_empty() {
                let path = path.strip_prefix(root()).unwrap();
                with_commands.insert(path.to_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(with_commands, PAGES.map(str::to_owned).into());
}
