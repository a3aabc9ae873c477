//! What the pages and pictures name exists.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::root;

/// Words in the page about packets that are no names in the kernel.
const WORDS: [&str; 2] = ["drop", "kpng"];

/// The names of chains, maps and sets that the nftables backend writes for the example.
fn names_in_the_kernel() -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kpng"));
    command.args(["file", "--input=examples/cluster.yaml", "to-local", "to-nft", "--dry-run"]);
    command.args(["--node-name=node-a", "--detect-local-mode=node-cidr"]);
    let output = command.current_dir(root()).output().unwrap();
    let ruleset = String::from_utf8(output.stdout).unwrap();
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
