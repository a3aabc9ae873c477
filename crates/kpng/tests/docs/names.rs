//! What the pages and pictures name exists.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::root;

/// Words in the page about packets that are no names in the kernel.
const WORDS: [&str; 2] = ["drop", "kpng"];

/// What a backend writes for the example.
fn ruleset(backend: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    command.args(["file", "--input=examples/cluster.yaml", "to-local", backend, "--dry-run"]);
    command.args(["--node-name=node-a", "--detect-local-mode=node-cidr"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{backend}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of chains, maps and sets that the nftables backend writes for the example.
fn names_in_the_kernel() -> BTreeSet<String> {
    let ruleset = ruleset("to-nft");
    let names = ruleset.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_object = matches!(words.next()?, "chain" | "map" | "set");
        is_object.then(|| words.next().map(str::to_owned)).flatten()
    });
    names.collect()
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn chains_and_maps_of_the_packet_s_way_are_those_in_the_kernel() {
    let names = names_in_the_kernel();
    let page = fs::read_to_string(root().join("docs/packet.md")).unwrap();
    let (_, nftables) = page.split_once("\n## nftables\n").unwrap();
    let (nftables, _) = nftables.split_once("\n## The other backends\n").unwrap();
    let pictures = ["hooks", "services"]
        .map(|name| fs::read_to_string(root().join(format!("docs/pictures/{name}.txt"))).unwrap());
    let text: String = nftables.split("```").step_by(2).collect();
    let is_name = |word: &&str| {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        word.chars().all(letters) && !word.starts_with("--") && !WORDS.contains(word)
    };
    let in_text: BTreeSet<_> = quoted(&text).filter(is_name).collect();
    let in_pictures: BTreeSet<_> = pictures.iter().flat_map(|text| quoted(text)).collect();
    assert!(in_text.len() > 15 && in_pictures.len() > 10, "{in_text:?} {in_pictures:?}");
    for name in in_text.union(&in_pictures) {
        assert!(names.contains(*name), "{name} is not in the kernel: {names:#?}");
    }
}

#[test]
fn names_of_the_other_backends_are_those_that_they_write() {
    let page = fs::read_to_string(root().join("docs/packet.md")).unwrap();
    let (_, others) = page.split_once("\n## The other backends\n").unwrap();
    for (title, backend, least) in [
        ("iptables", "to-iptables", 6),
        ("IPVS", "to-ipvs", 4),
        ("userspacelin", "to-userspacelin", 2),
    ] {
        let (_, text) = others.split_once(&format!("\n**{title}** ")).unwrap();
        let (text, _) = text.split_once("\n\n").unwrap_or((text, ""));
        let ruleset = ruleset(backend);
        let names: Vec<_> = quoted(text).filter(|name| !name.starts_with("--")).collect();
        assert!(names.len() >= least, "{title}: {names:?}");
        for name in names {
            assert!(ruleset.contains(name.trim_end_matches('…')), "{title} writes no {name}");
        }
    }
}

/// Reasons are what programs look for, so all of them are told.
#[test]
fn the_reasons_of_events_are_those_in_the_code() {
    let code = ["crates/kpng/src/events.rs", "crates/kpng-kube/src/watch/complaints.rs"];
    let code = code.map(|path| fs::read_to_string(root().join(path)).unwrap()).concat();
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("\n## What Events say\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let told: BTreeSet<_> = rows.filter_map(|row| quoted(row).next()).collect();
    // Words in CamelCase: reasons, and the actions that go with them.
    let actions = ["Claim", "FilterSources", "Listen", "Program", "Read"];
    let is_word = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_alphabetic())
            && !actions.contains(word)
    };
    let written: BTreeSet<_> = code.split('"').skip(1).step_by(2).filter(is_word).collect();
    assert_eq!(told, written);
}

#[test]
fn the_code_in_the_change_s_way_exists() {
    let picture = fs::read_to_string(root().join("docs/pictures/change.txt")).unwrap();
    let is_code = |word: &&str| word.starts_with("kpng-");
    let code: Vec<_> = picture.split_whitespace().filter(is_code).collect();
    assert!(code.len() >= 4, "{code:?}");
    for path in code {
        let (krate, file) = path.split_once('/').unwrap_or((path, "lib.rs"));
        let file = root().join("crates").join(krate).join("src").join(file);
        assert!(file.is_file(), "{}", file.display());
    }
}

#[test]
fn links_lead_somewhere() {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    let mut links = 0;
    for page in pages.chain(top) {
        let text = fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                let file = page.parent().unwrap().join(target);
                assert!(file.exists(), "{}: {target} is not there", page.display());
                links += 1;
            }
        }
    }
    assert!(links > 40, "{links}");
}
