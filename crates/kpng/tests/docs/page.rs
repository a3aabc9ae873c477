//! A page of the documentation: its blocks of commands.

use std::path::Path;

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) blocks: Vec<Block>,
}

/// Commands that stand together.
#[derive(Debug)]
pub(crate) struct Block {
    /// Where it begins.
    pub(crate) line: usize,
    pub(crate) manner: Manner,
    pub(crate) steps: Vec<Step>,
}

/// How the commands of a block are to be executed.
#[derive(Debug)]
pub(crate) enum Manner {
    /// They end.
    Ends,
    /// They run until they are stopped.
    GoesOn,
    /// Not at all, for this reason.
    NotRun(String),
}

/// One command.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) command: String,
    /// What it prints, if that is shown.
    pub(crate) shown: Option<String>,
}

const BEFOREHAND: &str = "<!-- beforehand: ";

impl Page {
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut blocks = Vec::new();
        let mut lines = text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            if let Some(rest) = line.strip_prefix(BEFOREHAND) {
                let command = rest.strip_suffix(" -->").expect("a comment of one line").to_owned();
                let steps = vec![Step { line: number, command, shown: None }];
                blocks.push(Block { line: number, manner: Manner::Ends, steps });
            }
            let Some(info) = line.strip_prefix("```").filter(|info| !info.is_empty()) else {
                continue;
            };
            let body = lines.by_ref().take_while(|(line, _)| *line != "```").collect::<Vec<_>>();
            let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
            let steps = match language {
                "sh" => commands(&body),
                "console" => dialogue(&body),
                "bash" | "shell" => panic!("{}:{number}: say sh or console", path.display()),
                _ => continue,
            };
            let manner = match rest.strip_prefix("not run: ") {
                Some(reason) => Manner::NotRun(reason.to_owned()),
                None if rest == "goes on" => Manner::GoesOn,
                None if rest.is_empty() => Manner::Ends,
                None => panic!("{}:{number}: {rest:?} means nothing", path.display()),
            };
            blocks.push(Block { line: number, manner, steps });
        }
        Self { blocks }
    }

    /// Whether commands of it need an API server.
    pub(crate) fn has_cluster(&self) -> bool {
        let run = self.blocks.iter().filter(|block| !matches!(block.manner, Manner::NotRun(_)));
        run.flat_map(|block| &block.steps).any(|step| step.command.contains("kpng kube "))
    }
}

/// A command for each line, or for several that end in `\`.
fn commands(body: &[(&str, usize)]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut continued = false;
    for (text, line) in body {
        match steps.last_mut() {
            Some(step) if continued => step.command += &format!("\n{text}"),
            _ if text.trim().is_empty() || text.starts_with('#') => continue,
            _ => steps.push(Step { line: *line, command: (*text).to_owned(), shown: None }),
        }
        continued = text.ends_with('\\');
    }
    steps
}

/// Commands after `$ `, each with what it prints.
fn dialogue(body: &[(&str, usize)]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (text, line) in body {
        if let Some(command) = text.strip_prefix("$ ") {
            steps.push(Step { line: *line, command: command.to_owned(), shown: None });
            continue;
        }
        let step = steps.last_mut().unwrap_or_else(|| panic!("line {line}: no command yet"));
        if step.command.ends_with('\\') {
            step.command += &format!("\n{text}");
        } else {
            step.shown.get_or_insert_default().push_str(&format!("{text}\n"));
        }
    }
    steps
}

/// Whether this was printed, where `…` stands for anything.
pub(crate) fn matches(shown: &str, printed: &str) -> bool {
    let shown = shown.replace("…\n", "…");
    let mut pieces = shown.split('…');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let mut last = None;
    for piece in pieces {
        if let Some(piece) = last.replace(piece) {
            let Some((_, after)) = rest.split_once(piece) else { return false };
            rest = after;
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[test]
fn what_stands_for_anything() {
    assert!(matches("a\nb\n", "a\nb\n"));
    assert!(!matches("a\n", "a\nb\n"));
    assert!(matches("a\n…\nd\n", "a\nb\nc\nd\n"));
    assert!(matches("a …\n", "a b c\n"));
    assert!(matches("… b … d\n", "a b c d\n"));
    assert!(!matches("a … c … e\n", "a b c d\n"));
    assert!(matches("a\n…\n", "a\nb\n"));
}
