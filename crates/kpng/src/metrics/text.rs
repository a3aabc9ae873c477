//! Prometheus' text format 0.0.4, which every scraper reads, made from OpenMetrics.
//!
//! Samples are called the same in both; the comments of counters are not.

/// The content type of [`classic`] text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Rewrites what the prometheus-client crate encodes. It writes the HELP of a metric, its TYPE, then
/// its samples; OpenMetrics calls a counter in HELP and TYPE by its name without `_total`.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let kind = lines.peek().and_then(|next| next.strip_prefix("# TYPE "));
            let is_counter = kind.is_some_and(|kind| kind.ends_with(" counter"));
            comment(&mut text, "# HELP ", help, is_counter);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            comment(&mut text, "# TYPE ", kind, kind.ends_with(" counter"));
        } else if line.starts_with('#') {
            // UNIT and EOF are OpenMetrics' own.
        } else {
            sample(&mut text, line);
        }
    }
    text
}

fn comment(text: &mut String, keyword: &str, rest: &str, is_counter: bool) {
    let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let suffix = if is_counter { "_total" } else { "" };
    text.extend([keyword, name, suffix, " ", rest, "\n"]);
}

/// The bound of a bucket is a label, thus text: kube-proxy writes `1` where OpenMetrics has `1.0`.
fn sample(text: &mut String, line: &str) {
    let bound = line.find("_bucket{le=\"").and_then(|start| {
        let end = start + line[start..].find(".0\"")?;
        // Labels after the bound are not it.
        (!line[start + 12..end].contains('"')).then_some(end)
    });
    match (bound, line.split_once("{} ")) {
        (Some(end), _) => text.extend([&line[..end], &line[end + 2..], "\n"]),
        // No labels need no braces.
        (None, Some((name, value))) if !name.contains('{') => {
            text.extend([name, " ", value, "\n"]);
        }
        (None, _) => text.extend([line, "\n"]),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(open_metrics: &str, expected: Expect) {
        expected.assert_eq(&classic(open_metrics));
    }

    #[test]
    fn no_labels_are_no_braces() {
        check(
            "a_total{} 4\nb{x=\"{} 1\"} 2\n",
            expect![[r#"
            a_total 4
            b{x="{} 1"} 2
        "#]],
        );
    }

    #[test]
    fn counters_keep_their_suffix_in_comments() {
        check(
            "# HELP a_hits Hits.\n# TYPE a_hits counter\n# UNIT a_hits hits\na_hits_total 2\n# EOF\n",
            expect![[r#"
                # HELP a_hits_total Hits.
                # TYPE a_hits_total counter
                a_hits_total 2
            "#]],
        );
    }

    #[test]
    fn a_gauge_is_called_what_it_is_called() {
        check(
            "# HELP x_total X.\n# TYPE x_total gauge\nx_total{version=\"1.0\"} 1.0\n# EOF\n",
            expect![[r#"
                # HELP x_total X.
                # TYPE x_total gauge
                x_total{version="1.0"} 1.0
            "#]],
        );
    }

    #[test]
    fn whole_bounds_have_no_fraction() {
        check(
            "h_bucket{le=\"0.25\",v=\"2.0\"} 1\nh_bucket{le=\"1.0\",v=\"2.0\"} 1\n\
             h_bucket{le=\"10.05\"} 1\nh_bucket{le=\"120.0\"} 1\nh_bucket{le=\"+Inf\"} 3\n",
            expect![[r#"
                h_bucket{le="0.25",v="2.0"} 1
                h_bucket{le="1",v="2.0"} 1
                h_bucket{le="10.05"} 1
                h_bucket{le="120"} 1
                h_bucket{le="+Inf"} 3
            "#]],
        );
    }
}
