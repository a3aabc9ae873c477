//! What keeps the sources tidy: rules that no compiler checks. Every complaint names file and line,
//! and says what to do.

mod crates;
mod modules;
mod names;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The most lines that a file has, without tests.
const MAX_LINES: usize = 500;

/// What is to be done has an issue. In two parts, so that this line needs none.
const NOTE: &str = concat!("TO", "DO");

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Everything in the workspace at `root` that is not as it should be.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let files = Files::read(root)?;
    let mut complaints = Vec::new();
    for file in &files.0 {
        check_text(file, &mut complaints);
        if file.is_rust() {
            check_rust(file, &mut complaints);
        }
    }
    modules::check(&files, &mut complaints);
    crates::check(&files, &mut complaints);
    names::check(&files, &mut complaints);
    complaints.sort();
    Ok(complaints)
}

/// A text file of the workspace.
#[derive(Debug)]
struct File {
    /// Its path from the root, with slashes.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// It is compiled for tests only.
    fn is_test(&self) -> bool {
        let within = |part| self.path.contains(part);
        within("/tests/") || within("kpng-testkit/") || self.path.ends_with("/tests.rs")
    }
}

/// All text files of the workspace, sorted by path.
#[derive(Debug)]
struct Files(Vec<File>);

impl Files {
    fn read(root: &Path) -> Result<Self> {
        let mut files = Vec::new();
        read_directory(root, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(files))
    }

    fn get(&self, path: &str) -> Option<&File> {
        self.0.iter().find(|file| file.path == path)
    }

    fn rust(&self) -> impl Iterator<Item = &File> {
        self.0.iter().filter(|file| file.is_rust())
    }
}

fn read_directory(directory: &Path, prefix: &str, files: &mut Vec<File>) -> Result<()> {
    let list = || format!("list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(list)? {
        let entry = entry.with_context(list)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let kind = entry.file_type().with_context(list)?;
        if kind.is_dir() {
            // Nothing hidden is ours but what continuous integration and cargo read.
            let foreign = name.starts_with('.') && ![".github", ".cargo", ".ci"].contains(&&*name);
            if !foreign && name != "target" {
                read_directory(&entry.path(), &format!("{path}/"), files)?;
            }
        } else if kind.is_file() && is_text(&name) {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("read {path}"))?;
            files.push(File { path, text });
        }
    }
    Ok(())
}

fn is_text(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ["rs", "toml", "md", "proto", "yaml", "yml", "sh"].contains(&ending)
}

fn check_text(file: &File, complaints: &mut Vec<String>) {
    let path = &file.path;
    for (number, line) in (1..).zip(file.text.lines()) {
        // Markdown breaks a line by two spaces.
        if line.ends_with([' ', '\t']) && !path.ends_with(".md") {
            complaints.push(format!("{path}:{number}: trailing space; remove it"));
        }
        let notes = line.match_indices(NOTE).filter(|(at, _)| !names_issue(&line[at + 4..]));
        if notes.count() > 0 && !line.contains(&format!("`{NOTE}`")) {
            complaints.push(format!(
                "{path}:{number}: {NOTE} without an issue; write {NOTE}(#123), or do it"
            ));
        }
    }
    if !file.text.is_empty() && !file.text.ends_with('\n') {
        complaints.push(format!("{path}: the last line has no end; add a newline"));
    }
}

fn names_issue(rest: &str) -> bool {
    let number = rest.strip_prefix("(#").and_then(|rest| rest.split_once(')'));
    number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

fn check_rust(file: &File, complaints: &mut Vec<String>) {
    let path = &file.path;
    if !file.text.starts_with("//! ") && !file.is_test() {
        complaints
            .push(format!("{path}:1: no module comment; begin with `//! ` and what the module is"));
    }
    let lines = lines_without_tests(&file.text);
    if lines > MAX_LINES && !file.is_test() {
        complaints.push(format!(
            "{path}:{lines}: more than {MAX_LINES} lines without tests; split it by ideas"
        ));
    }
}

/// The lines before the test module in the file.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let is_test_module = |pair: &[&str]| {
        pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    };
    lines.windows(2).position(is_test_module).unwrap_or(lines.len())
}
