//! Every source file is a part of some crate: a file that no module declares is never compiled.

use std::collections::BTreeSet;

use super::Files;

/// Complains of files that no `mod` leads to.
pub(super) fn check(files: &Files, complaints: &mut Vec<String>) {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<_> = files
        .rust()
        .map(|file| file.path.clone())
        .filter(|path| is_crate_root(files, path))
        .collect();
    while let Some(path) = waiting.pop() {
        let Some(file) = files.get(&path) else { continue };
        if reached.insert(path.clone()) {
            waiting.extend(declared(&path, is_crate_root(files, &path), &file.text));
        }
    }
    for file in files.rust().filter(|file| !reached.contains(&file.path)) {
        complaints.push(format!(
            "{}:1: no module declares this file; write `mod` where it belongs, or delete it",
            file.path
        ));
    }
}

/// Cargo finds these by itself.
fn is_crate_root(files: &Files, path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    let is_package =
        |parts: &[&str]| files.get(&format!("{}/Cargo.toml", parts.join("/"))).is_some();
    match parts[..] {
        [.., "build.rs"] => is_package(&parts[..parts.len() - 1]),
        [.., "src", "lib.rs" | "main.rs"] => is_package(&parts[..parts.len() - 2]),
        [.., "src", "bin", _] => is_package(&parts[..parts.len() - 3]),
        [.., "tests" | "examples" | "benches", _] => {
            is_package(&parts[..parts.len() - 2]) || is_in_manifest(files, path)
        }
        _ => false,
    }
}

/// Some manifest has `path = "../../PATH"`.
fn is_in_manifest(files: &Files, path: &str) -> bool {
    let manifests = files.0.iter().filter(|file| file.path.ends_with("Cargo.toml"));
    let named = format!("/{path}\"");
    manifests.into_iter().any(|manifest| {
        manifest.text.lines().any(|line| line.contains("path = \"../") && line.contains(&named))
    })
}

/// The files in which the modules can be that `text` declares.
fn declared(path: &str, is_root: bool, text: &str) -> Vec<String> {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let within =
        if is_root { directory.to_owned() } else { path.trim_end_matches(".rs").to_owned() };
    let mut found = Vec::new();
    let mut explicit = None;
    for line in text.lines().map(str::trim) {
        if let Some(file) = line.strip_prefix("#[path = \"").and_then(|l| l.strip_suffix("\"]")) {
            explicit = Some(format!("{directory}/{file}"));
        } else if let Some(name) = module_name(line) {
            found.push(explicit.take().unwrap_or_else(|| format!("{within}/{name}.rs")));
        } else if !line.starts_with("#[") {
            explicit = None;
        }
    }
    found
}

/// `NAME` of `mod NAME;` with any visibility.
fn module_name(line: &str) -> Option<&str> {
    let (before, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
    let is_visibility = before.is_empty() || before.starts_with("pub") && before.ends_with(' ');
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (is_visibility && is_name).then_some(name)
}
