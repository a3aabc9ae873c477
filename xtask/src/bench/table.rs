//! Figures, and the table of them beside their targets.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Result};

/// What was measured: names and values, in the order in which they are shown.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    /// Adds a figure. The name says the unit.
    pub(crate) fn push(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// One JSON object.
    pub(crate) fn json(&self) -> serde_json::Value {
        let figure = |(name, value): &(String, f64)| (name.clone(), serde_json::json!(value));
        self.0.iter().map(figure).collect()
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name}={value}"))
    }
}

impl FromStr for Figures {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let figure = |line: &str| {
            let (name, value) = line.split_once('=').context("a figure is NAME=VALUE")?;
            Ok((name.to_owned(), value.trim().parse()?))
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        Ok(Self(lines.map(figure).collect::<Result<_>>()?))
    }
}

/// What a figure shall be below.
#[derive(Debug)]
pub(crate) struct Target {
    /// The name of the figure.
    pub(crate) figure: &'static str,
    /// The size of the cluster; empty for every size.
    pub(crate) size: &'static str,
    /// The first value that is too high.
    pub(crate) limit: Limit,
}

/// How a target is given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// In the unit of the figure.
    Below(f64),
    /// In multiples of the figure of the first size.
    TimesFirst(f64),
}

/// One column for each size or other thing that was measured, one row for each figure.
pub(crate) struct Table {
    targets: &'static [Target],
    columns: Vec<(String, Figures)>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(targets: &'static [Target]) -> Self {
        Self { targets, columns: Vec::new() }
    }

    /// Adds the figures of a size.
    pub(crate) fn add(&mut self, size: impl ToString, figures: Figures) {
        self.columns.push((size.to_string(), figures));
    }

    /// A figure with its ratio to the first size's, its targets, and whether they are missed.
    fn cell(&self, name: &str, column: usize) -> String {
        let (size, figures) = &self.columns[column];
        let Some(value) = figures.get(name) else { return "-".to_owned() };
        let first = self.columns[0].1.get(name).filter(|first| *first > 0.0);
        let mut text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
        if let (Some(first), true) = (first, column > 0) {
            text += &format!(" {:.2}x", value / first);
        }
        for target in self.targets.iter().filter(|target| target.figure == name) {
            if !target.size.is_empty() && target.size != size {
                continue;
            }
            let met = match (target.limit, first) {
                (Limit::Below(limit), _) => {
                    text += &format!(" (<{limit})");
                    value < limit
                }
                (Limit::TimesFirst(limit), Some(first)) if column > 0 => {
                    text += &format!(" (<{limit}x)");
                    value / first < limit
                }
                _ => true,
            };
            if !met {
                text += " MISSED";
            }
        }
        text
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:36}", "")?;
        for (size, _) in &self.columns {
            write!(f, " {:>28}", size)?;
        }
        writeln!(f)?;
        let Some((_, first)) = self.columns.first() else { return Ok(()) };
        for (name, _) in &first.0 {
            write!(f, "{name:36}")?;
            for column in 0..self.columns.len() {
                write!(f, " {:>28}", self.cell(name, column))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
