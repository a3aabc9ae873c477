//! docs/metrics.md, read.

use std::collections::{BTreeMap, BTreeSet};

/// A metric: its type as Prometheus has it, and its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) kind: String,
    pub(crate) labels: BTreeSet<String>,
}

/// The metrics of the page's tables.
pub(crate) fn page() -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for row in include_str!("../../../../docs/metrics.md").lines() {
        let Some(row) = row.strip_prefix("| `") else { continue };
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [name, kind, labels, meaning, _question, ""] = cells[..] else {
            panic!("not a row of five cells: {row}");
        };
        assert!(!meaning.is_empty(), "{row}");
        let labels = labels.split('`').map(str::trim).filter(|label| !label.is_empty());
        let metric = Metric { kind: kind.to_owned(), labels: labels.map(str::to_owned).collect() };
        let before = metrics.insert(name.trim_end_matches('`').to_owned(), metric);
        assert_eq!(before, None, "{name} is there twice");
    }
    metrics
}
