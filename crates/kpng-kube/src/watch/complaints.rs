//! What is said of objects that are wrong: in the log, in numbers, and to those who look at them.

use kpng_core::store::Kind;
use tracing::warn;

use super::KindLoop;
use crate::convert::Complaint;
use crate::events::{Event, Regarding, Scope};
use crate::selectors::resource;
use crate::watcher::Session;

impl KindLoop {
    /// Says what is wrong with an object, once per version of it.
    pub(super) fn complain(&mut self, session: &Session<'_>, complaint: Complaint) {
        let Complaint { key, resource_version, rejected, details } = complaint;
        let name = key.as_ref().map_or_else(|| "(unknown)".to_owned(), ToString::to_string);
        if let Some(key) = &key
            && self.complained.insert(key.clone(), resource_version.clone())
                == Some(resource_version)
        {
            return;
        }
        let (stats, kind) = (self.stats(session), resource(self.kind));
        let details = details.join("; ");
        let (reason, note) = match rejected {
            Some(reason) => {
                stats.count_rejected(reason);
                let reason = reason.name();
                let note = format!("rejected, its last good state stays: {details}");
                warn!(kind, object = name, reason, "{note}");
                ("Rejected", note)
            }
            None => {
                stats.left_out.add(1);
                let note = format!("used without the parts that are wrong: {details}");
                warn!(kind, object = name, "{note}");
                ("PartlyRejected", note)
            }
        };
        let regarding = match (self.kind, key) {
            (Kind::Services, Some(key)) => Regarding::Service(key),
            (Kind::EndpointSlices, Some(key)) => Regarding::EndpointSlice(key),
            (Kind::Nodes, _) | (_, None) => return,
        };
        if let Some(recorder) = session.recorder {
            let (related, action, scope) = (None, "Read", Scope::Cluster);
            recorder.record(Event { regarding, related, reason, action, note, scope });
        }
    }
}
