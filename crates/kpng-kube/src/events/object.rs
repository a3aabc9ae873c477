//! What is written: an Event of the API group `events.k8s.io/v1`, with the name that says it.

use std::hash::Hasher as _;

use jiff::Timestamp;
use kpng_core::model::NamespacedName;
use serde_json::{Value, json};
use twox_hash::XxHash64;

use super::{Event, Regarding, Scope};

/// Who says what we say, among all that write Events (`reportingController`).
const CONTROLLER: &str = "kpng";

/// Limits of the API server's validation, in bytes.
const MAX_INSTANCE: usize = 128;
const MAX_NOTE: usize = 1024;
const MAX_NAME: usize = 253;

/// Who says it, among all processes of kpng (`reportingInstance`).
#[derive(Debug)]
pub(super) struct Speaker(String);

impl Speaker {
    pub(super) fn new(instance: &str) -> Self {
        Self(shortened(instance, MAX_INSTANCE).to_owned())
    }

    /// The same Event about the same object always has the same name: on every node, or on this one.
    pub(super) fn name_of(&self, event: &Event, uid: Option<&str>) -> String {
        let mut hasher = XxHash64::with_seed(0);
        let node = match event.scope {
            Scope::Cluster => "",
            Scope::Node => &self.0,
        };
        let kind = event.regarding.kind();
        for part in [kind, uid.unwrap_or_default(), event.reason, &event.note, node] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
        let hash = format!(".{:016x}", hasher.finish());
        let name = shortened(&event.regarding.key().name, MAX_NAME - hash.len());
        // A piece of a name may end in what no piece of a name may.
        name.trim_end_matches(['.', '-']).to_owned() + &hash
    }

    /// The body of the request that creates it.
    pub(super) fn object(&self, event: &Event, name: &str, uid: Option<&str>) -> Value {
        let namespace = &*event.regarding.key().namespace;
        let mut object = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": now(),
            "reportingController": CONTROLLER,
            "reportingInstance": self.0,
            "type": "Warning",
            "reason": event.reason,
            "action": event.action,
            "note": shortened(&event.note, MAX_NOTE),
            "regarding": event.regarding.reference(),
        });
        if let Some(uid) = uid {
            object["regarding"]["uid"] = uid.into();
        }
        if let Some(related) = &event.related {
            object["related"] = related.reference();
        }
        object
    }
}

/// The body of the request that says it was said `count` times.
pub(super) fn series(count: u32) -> Value {
    json!({"series": {"count": count, "lastObservedTime": now()}})
}

/// Where Events of a namespace are.
pub(super) fn events_path(event: &Event) -> String {
    let namespace = &event.regarding.key().namespace;
    format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events")
}

impl Regarding {
    fn kind(&self) -> &'static str {
        match self {
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
        }
    }

    /// Its namespace and name.
    pub fn key(&self) -> &NamespacedName {
        match self {
            Self::Service(key) | Self::EndpointSlice(key) => key,
        }
    }

    fn reference(&self) -> Value {
        let version = match self {
            Self::Service(_) => "v1",
            Self::EndpointSlice(_) => "discovery.k8s.io/v1",
        };
        let NamespacedName { namespace, name } = self.key();
        json!({
            "apiVersion": version, "kind": self.kind(),
            "namespace": &**namespace, "name": &**name,
        })
    }

    /// A list of it alone: who may list may do that, `get` is another right.
    pub(super) fn list_path(&self) -> String {
        let NamespacedName { namespace, name } = self.key();
        let collection = match self {
            Self::Service(_) => format!("/api/v1/namespaces/{namespace}/services"),
            Self::EndpointSlice(_) => {
                format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
            }
        };
        format!("{collection}?fieldSelector=metadata.name%3D{name}")
    }
}

/// `MicroTime` of the API.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

/// As much of `text` as fits into so many bytes.
fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(scope: Scope) -> Event {
        Event {
            regarding: Regarding::Service(NamespacedName::new("shop", "web")),
            related: None,
            reason: "Reason",
            action: "Act",
            note: "a note".to_owned(),
            scope,
        }
    }

    #[test]
    fn a_name_says_the_same_on_every_node_and_differs_where_the_event_does() {
        let (a, b) = (Speaker::new("node-a"), Speaker::new("node-b"));
        let cluster = event(Scope::Cluster);
        // Nodes of different versions of kpng have to agree on it.
        assert_eq!(a.name_of(&cluster, Some("1")), "web.0a738013def74d42");
        assert_eq!(a.name_of(&cluster, Some("1")), b.name_of(&cluster, Some("1")));
        assert_ne!(a.name_of(&cluster, Some("1")), a.name_of(&cluster, Some("2")), "made anew");
        let other = Event { note: "another note".to_owned(), ..cluster.clone() };
        assert_ne!(a.name_of(&cluster, None), a.name_of(&other, None));
        let node = event(Scope::Node);
        assert_ne!(a.name_of(&node, None), b.name_of(&node, None));
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let key = NamespacedName::new("shop", format!("{}.tail", "a".repeat(235)));
        let note = "ä".repeat(1000);
        let event =
            Event { regarding: Regarding::EndpointSlice(key), note, ..event(Scope::Cluster) };
        let speaker = Speaker::new(&"n".repeat(300));
        let name = speaker.name_of(&event, None);
        assert_eq!(name.len(), 235 + 17, "{name}");
        assert!(!name.contains(".."), "{name}");
        let object = speaker.object(&event, &name, None);
        assert_eq!(object["note"].as_str().unwrap().len(), 1024);
        assert_eq!(object["reportingInstance"].as_str().unwrap().len(), 128);
    }
}
