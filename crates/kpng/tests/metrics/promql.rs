//! As much of PromQL as it takes to know which metrics an expression reads, by which labels.

use std::collections::{BTreeMap, BTreeSet};

/// What an expression refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Refers {
    /// Metrics, and the labels that they are selected by.
    pub(crate) metrics: BTreeMap<String, BTreeSet<String>>,
    /// Labels that it groups and matches by.
    pub(crate) labels: BTreeSet<String>,
}

/// Words that are no metric.
const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// Words before a list of labels.
const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Reads an expression.
pub(crate) fn refers(expression: &str) -> Refers {
    let mut refers = Refers::default();
    let mut rest = expression;
    let mut metric = None;
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').expect("strings end, and have no escapes here");
            rest = &rest[end + 2..];
        } else if first == '[' {
            let end = rest.find(']').expect("ranges end");
            rest = &rest[end + 1..];
        } else if first == '{' {
            let (selectors, after) = selectors(&rest[1..]);
            let of: &mut BTreeSet<_> =
                refers.metrics.get_mut(metric.as_ref().expect("of a metric")).unwrap();
            of.extend(selectors);
            rest = after;
        } else if first.is_ascii_alphabetic() || first == '_' {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let (word, after) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
            rest = after;
            if BEFORE_LABELS.contains(&word) {
                let (list, after) = labels(after);
                refers.labels.extend(list);
                rest = after;
            } else if !is_called(after) && !WORDS.contains(&word) {
                refers.metrics.entry(word.to_owned()).or_default();
                metric = Some(word.to_owned());
            }
        } else if first.is_ascii_digit() {
            // A duration's unit is no metric.
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
            rest = &rest[rest.find(|c| !is_part(c)).unwrap_or(rest.len())..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    refers
}

/// What stands before this is a function or an aggregation.
fn is_called(after: &str) -> bool {
    let after = after.trim_start();
    ["(", "by (", "without ("].into_iter().any(|start| after.starts_with(start))
}

/// `(a, b) …`, or nothing of that kind, as behind `group_left`.
fn labels(text: &str) -> (Vec<String>, &str) {
    let Some(inner) = text.trim_start().strip_prefix('(') else { return (Vec::new(), text) };
    let (list, after) = inner.split_once(')').expect("a list of labels ends");
    let list = list.split(',').map(str::trim).filter(|label| !label.is_empty());
    (list.map(str::to_owned).collect(), after)
}

/// `a="x", b=~"y"} …`
fn selectors(mut text: &str) -> (Vec<String>, &str) {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(after) = text.strip_prefix('}') {
            return (labels, after);
        }
        let (label, after) = text.split_once(['=', '!']).expect("a selector compares");
        labels.push(label.trim().to_owned());
        let value = after.split_once('"').expect("with a string").1;
        text = value.split_once('"').expect("strings end").1;
    }
}

#[test]
fn expressions_are_understood() {
    let found = refers(
        "topk(10, sum by (le, service) (rate(a_total{x=~\"${y:regex}\", z!=\"}\"}[$__rate_interval] \
         offset 5m)) > 1e3) or on (instance) b:c / ignoring(q) group_left d{} unless absent(e)",
    );
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found.labels, set(&["le", "service", "instance", "q"]));
    let metrics: Vec<_> = found.metrics.iter().map(|(name, by)| (&**name, by.clone())).collect();
    let none = set(&[]);
    assert_eq!(
        metrics,
        [("a_total", set(&["x", "z"])), ("b:c", none.clone()), ("d", none.clone()), ("e", none)]
    );
}
