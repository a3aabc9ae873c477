//! What is asked of the API server, and which labels and annotations are kept.
//!
//! Foreign and headless Services are filtered by the server: they cost this process nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use kpng_core::store::Kind;

use crate::Error;

/// Marks Services (and, mirrored, their slices) that another proxy implements (KEP-2447).
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Marks Services without cluster IPs and their slices.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// A pattern for label or annotation keys: `*` is any number of any characters, '/' and '.'
/// included, `?` is any one character. The rest is literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Checks a pattern.
    ///
    /// # Errors
    /// [`Error::Glob`] when it is empty or has a character that no key can have.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let bad = |reason| Err(Error::Glob { pattern: pattern.to_owned(), reason });
        let literal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if pattern.is_empty() {
            return bad("it is empty; use \"*\" for everything");
        }
        if !pattern.chars().all(|c| literal(c) || c == '*' || c == '?') {
            return bad("keys have letters, digits and -_./ only, and the wildcards are * and ?");
        }
        Ok(Self(pattern.into()))
    }

    /// The whole of `key` matches.
    pub fn matches(&self, key: &str) -> bool {
        let (pattern, key) = (self.0.as_bytes(), key.as_bytes());
        let (mut at, mut star) = ((0, 0), None);
        // Advance over equal bytes; on a mismatch let the last `*` eat one more byte.
        while at.1 < key.len() {
            match pattern.get(at.0) {
                Some(b'*') => {
                    star = Some(at);
                    at.0 += 1;
                }
                Some(&byte) if byte == b'?' || byte == key[at.1] => at = (at.0 + 1, at.1 + 1),
                _ => {
                    let Some((p, k)) = star else { return false };
                    star = Some((p, k + 1));
                    at = (p + 1, k + 1);
                }
            }
        }
        pattern[at.0..].iter().all(|&byte| byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = Error;

    fn from_str(pattern: &str) -> Result<Self, Error> {
        Self::new(pattern)
    }
}

/// The labels and annotations that go into the store. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// `--with-service-labels`.
    pub service_labels: Vec<Glob>,
    /// `--with-service-annotations`.
    pub service_annotations: Vec<Glob>,
    /// `--with-node-labels`.
    pub node_labels: Vec<Glob>,
    /// `--with-node-annotations`.
    pub node_annotations: Vec<Glob>,
}

/// The entries whose keys match one of the patterns.
pub(crate) fn select(
    globs: &[Glob],
    entries: &BTreeMap<String, String>,
) -> BTreeMap<Box<str>, Box<str>> {
    let selected = entries.iter().filter(|(key, _)| globs.iter().any(|glob| glob.matches(key)));
    selected.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// Which Nodes to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeScope {
    /// All of them: for servers of the API, and for whoever needs other nodes' zones.
    #[default]
    All,
    /// Only this one: enough for the agent of one node, and much less traffic.
    Only(String),
}

/// The collections that are watched, with their selectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Collections {
    label_selector: String,
    field_selector: Option<String>,
}

impl Collections {
    pub(crate) fn new(service_proxy_name: Option<&str>, nodes: &NodeScope) -> Result<Self, Error> {
        let proxy = match service_proxy_name {
            None | Some("") => format!("!{SERVICE_PROXY_NAME}"),
            Some(name) if is_label_value(name) => format!("{SERVICE_PROXY_NAME}={name}"),
            Some(name) => return Err(Error::ServiceProxyName { name: name.to_owned() }),
        };
        let field_selector = match nodes {
            NodeScope::All => None,
            NodeScope::Only(name) => Some(format!("metadata.name={name}")),
        };
        Ok(Self { label_selector: format!("!{HEADLESS},{proxy}"), field_selector })
    }

    /// The path of a request for this kind, with the selector and `parameters` as its query.
    pub(crate) fn path(&self, kind: Kind, parameters: &[(&str, &str)]) -> String {
        let (path, selector) = match kind {
            Kind::Services => ("/api/v1/services", Some(("labelSelector", &self.label_selector))),
            Kind::EndpointSlices => (
                "/apis/discovery.k8s.io/v1/endpointslices",
                Some(("labelSelector", &self.label_selector)),
            ),
            Kind::Nodes => {
                ("/api/v1/nodes", self.field_selector.as_ref().map(|s| ("fieldSelector", s)))
            }
        };
        let selector = selector.map(|(name, value)| (name, value.as_str()));
        let mut uri = path.to_owned();
        for (at, (name, value)) in
            selector.into_iter().chain(parameters.iter().copied()).enumerate()
        {
            uri.push(if at == 0 { '?' } else { '&' });
            uri.push_str(name);
            uri.push('=');
            percent_encode(value, &mut uri);
        }
        uri
    }
}

/// The resource's name in messages and rules of roles.
pub(crate) fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Services => "services",
        Kind::EndpointSlices => "endpointslices",
        Kind::Nodes => "nodes",
    }
}

fn is_label_value(name: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= 63
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && name.bytes().all(inner)
}

/// Everything but the unreserved characters of RFC 3986.
fn percent_encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("writing to a String does not fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check_glob(pattern: &str, matching: &[&str], other: &[&str]) {
        let glob = Glob::new(pattern).unwrap();
        for key in matching {
            assert!(glob.matches(key), "{pattern} must match {key}");
        }
        for key in other {
            assert!(!glob.matches(key), "{pattern} must not match {key}");
        }
    }

    #[test]
    fn stars_cross_slashes_and_dots() {
        check_glob("*", &["", "a", "topology.kubernetes.io/zone"], &[]);
        check_glob("app", &["app"], &["", "ap", "apps", "my-app"]);
        check_glob("*.kubernetes.io/*", &["topology.kubernetes.io/zone"], &["kubernetes.io/os"]);
        check_glob("a*b*c", &["abc", "a/b.bc", "aXbXbXc"], &["ab", "acb", "abcd"]);
        check_glob("a?c", &["abc", "a/c"], &["ac", "abbc"]);
        check_glob("a**", &["a", "ab"], &["ba"]);
    }

    #[test]
    fn bad_globs_are_refused() {
        let check = |pattern: &str, expected: Expect| {
            expected.assert_eq(&Glob::new(pattern).unwrap_err().to_string());
        };
        check("", expect![[r#"bad pattern "": it is empty; use "*" for everything"#]]);
        check(
            "[a",
            expect![[
                r#"bad pattern "[a": keys have letters, digits and -_./ only, and the wildcards are * and ?"#
            ]],
        );
    }

    #[test]
    fn paths() {
        let check =
            |name, nodes: NodeScope, kind, parameters: &[(&str, &str)], expected: Expect| {
                let collections = Collections::new(name, &nodes).unwrap();
                expected.assert_eq(&collections.path(kind, parameters));
            };
        let only = || NodeScope::Only("node-1".to_owned());
        check(
            None,
            NodeScope::All,
            Kind::Services,
            &[("watch", "1")],
            expect![
                "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fheadless%2C%21service.kubernetes.io%2Fservice-proxy-name&watch=1"
            ],
        );
        check(
            Some("mine"),
            NodeScope::All,
            Kind::EndpointSlices,
            &[],
            expect![
                "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless%2Cservice.kubernetes.io%2Fservice-proxy-name%3Dmine"
            ],
        );
        check(
            None,
            NodeScope::All,
            Kind::Nodes,
            &[("continue", "a b")],
            expect!["/api/v1/nodes?continue=a%20b"],
        );
        check(
            None,
            only(),
            Kind::Nodes,
            &[("limit", "500")],
            expect!["/api/v1/nodes?fieldSelector=metadata.name%3Dnode-1&limit=500"],
        );
    }

    #[test]
    fn a_service_proxy_name_is_a_label_value() {
        for name in ["a b", "-a", "a,b=c", &"a".repeat(64)] {
            assert!(Collections::new(Some(name), &NodeScope::All).is_err(), "{name}");
        }
        assert_eq!(
            Collections::new(Some(""), &NodeScope::All).unwrap(),
            Collections::new(None, &NodeScope::All).unwrap(),
        );
    }
}
