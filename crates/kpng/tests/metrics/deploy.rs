//! The dashboard and the alerts name only metrics and labels that exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::page::{Metric, page};
use crate::promql::refers;

/// Labels that Prometheus or its configuration gives to what it scrapes.
const OF_TARGETS: [&str; 3] = ["cluster", "job", "instance"];

/// What is wrong with an expression.
fn problems(expression: &str, page: &BTreeMap<String, Metric>) -> Vec<String> {
    let found = refers(expression);
    let mut problems = Vec::new();
    let mut known: BTreeSet<&str> = OF_TARGETS.into();
    for (name, selected_by) in &found.metrics {
        let Some((metric, is_bucket)) = metric(name, page) else {
            problems.push(format!("there is no {name}: {expression}"));
            continue;
        };
        let mut labels: BTreeSet<&str> = OF_TARGETS.into();
        labels.extend(metric.labels.iter().map(String::as_str));
        labels.extend(is_bucket.then_some("le"));
        let unknown = selected_by.iter().filter(|label| !labels.contains(&***label));
        problems.extend(unknown.map(|label| format!("{name} has no {label}: {expression}")));
        known.extend(labels);
    }
    let unknown = found.labels.iter().filter(|label| !known.contains(&***label));
    problems.extend(unknown.map(|label| format!("nothing has {label}: {expression}")));
    if found.metrics.is_empty() {
        problems.push(format!("no metric: {expression}"));
    }
    problems
}

/// A metric by the name of its samples, and whether those are buckets.
fn metric<'p>(name: &str, page: &'p BTreeMap<String, Metric>) -> Option<(&'p Metric, bool)> {
    let histogram = |end| {
        let metric = page.get(name.strip_suffix(end)?)?;
        (metric.kind == "histogram").then_some((metric, end == "_bucket"))
    };
    let plain = page.get(name).filter(|metric| metric.kind != "histogram");
    plain
        .map(|metric| (metric, false))
        .or_else(|| ["_bucket", "_sum", "_count"].into_iter().find_map(histogram))
}

/// All values of the key `expr`, however deep.
fn expressions<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("expr").and_then(Value::as_str));
            object.values().for_each(|value| expressions(value, found));
        }
        Value::Array(array) => array.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_names_only_what_exists() {
    let page = page();
    let dashboard: Value =
        serde_json::from_str(include_str!("../../../../deploy/grafana/kpng.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 40, "{} expressions", found.len());
    let mut wrong: Vec<_> = found.iter().flat_map(|e| problems(e, &page)).collect();

    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let mut names = BTreeSet::from(["__rate_interval".to_owned(), "__range".to_owned()]);
    for variable in variables {
        names.insert(variable["name"].as_str().unwrap().to_owned());
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let inner = query.strip_prefix("label_values(").and_then(|q| q.strip_suffix(')')).unwrap();
        let (selector, label) = inner.rsplit_once(", ").unwrap();
        // As if it were grouped by.
        wrong.extend(problems(&format!("sum by ({label}) ({selector})"), &page));
    }
    for expression in found {
        for used in expression.split('$').skip(1) {
            let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let used = &used[..end.unwrap_or(used.len())];
            if !names.contains(used) {
                wrong.push(format!("there is no variable {used}: {expression}"));
            }
        }
    }
    let ids: Vec<_> =
        dashboard["panels"].as_array().unwrap().iter().map(|panel| &panel["id"]).collect();
    assert!(ids.iter().enumerate().all(|(at, id)| !ids[..at].contains(id)), "unique panels");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn alerts_name_only_what_exists() {
    let page = page();
    let text = include_str!("../../../../deploy/prometheus/rules.yaml");
    let mut wrong = Vec::new();
    let alerts: Vec<_> = text.split("- alert: ").skip(1).collect();
    assert!(alerts.len() > 10, "{} alerts", alerts.len());
    for alert in alerts {
        let line = |key: &str| alert.lines().find_map(|line| line.trim().strip_prefix(key));
        let name = alert.lines().next().unwrap();
        let expression = line("expr: ").unwrap_or_else(|| panic!("{name} has no expression"));
        wrong.extend(problems(expression, &page));
        let by = refers(expression);
        let severity = line("severity: ");
        if !matches!(severity, Some("critical" | "warning" | "info")) {
            wrong.push(format!("{name} has the severity {severity:?}"));
        }
        for key in ["summary: ", "description: "] {
            let text = line(key).unwrap_or_else(|| panic!("{name} has no {key}"));
            for used in text.split("$labels.").skip(1) {
                let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let used = &used[..end.unwrap_or(used.len())];
                // What is not grouped has all labels of its metrics.
                let has = match by.labels.is_empty() {
                    true => {
                        OF_TARGETS.contains(&used)
                            || by.metrics.keys().any(|name| {
                                metric(name, &page)
                                    .is_some_and(|(metric, _)| metric.labels.contains(used))
                            })
                    }
                    false => by.labels.contains(used),
                };
                if !has {
                    wrong.push(format!("{name} has no label {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The test can fail.
#[test]
fn what_does_not_exist_is_found() {
    let page = page();
    let found = |expression: &str| problems(expression, &page).len();
    assert_eq!(found("sum by (instance) (rate(kpng_service_connections_total[5m]))"), 0);
    assert_eq!(found("sum by (pod) (rate(kpng_service_connections_total[5m]))"), 1);
    assert_eq!(found("kpng_service_connections_total{pod=\"x\"}"), 1);
    assert_eq!(found("kpng_service_connections"), 1);
    assert_eq!(found("kpng_sync_services"), 1, "a histogram has no sample of its own name");
    assert_eq!(found("histogram_quantile(0.9, rate(kpng_sync_services_bucket{le=\"1\"}[1m]))"), 0);
    assert_eq!(found("1 + 1"), 1);
}
