//! What a check found, as text and as JSON.

use std::fmt;

use hyper::StatusCode;
use kpng_core::backend::{Audit, Objects};
use serde_json::{Value, json};

/// What a check found; nothing when the backend cannot tell.
#[derive(Clone, Debug)]
pub struct Checked(pub Option<Audit>);

impl Checked {
    /// The kernel holds what it shall.
    pub fn is_equal(&self) -> bool {
        self.0.as_ref().is_some_and(Audit::is_equal)
    }

    /// The answer as a status of HTTP: 200, 409 where something differs, 501 where nobody can tell.
    pub fn status(&self) -> StatusCode {
        match &self.0 {
            Some(audit) if audit.is_equal() => StatusCode::OK,
            Some(_) => StatusCode::CONFLICT,
            None => StatusCode::NOT_IMPLEMENTED,
        }
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let Some(audit) = &self.0 else { return json!({ "result": "unknown" }) };
        let objects = |objects: &Objects| json!({ "count": objects.count, "first": objects.names });
        json!({
            "result": if audit.is_equal() { "equal" } else { "differs" },
            "wanted": audit.wanted,
            "found": audit.found,
            "missing": objects(&audit.missing),
            "differing": objects(&audit.differing),
            "foreign": objects(&audit.foreign),
            "unused": audit.unused,
        })
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(audit) = &self.0 else {
            return writeln!(f, "unknown: this backend cannot tell what the kernel holds");
        };
        let Audit { wanted, found, missing, differing, foreign, unused } = audit;
        let result = if audit.is_equal() { "equal" } else { "differs" };
        writeln!(f, "{result}: the kernel holds {found} of {wanted} objects of the plan")?;
        for (title, objects) in
            [("missing", missing), ("differing", differing), ("foreign", foreign)]
        {
            if objects.count > 0 {
                writeln!(f, "{title}: {}", objects.count)?;
            }
            objects.names.iter().try_for_each(|name| writeln!(f, "  {name}"))?;
            let more = objects.count - objects.names.len();
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        if *unused > 0 {
            writeln!(f, "unused, to be used again or removed: {unused}")?;
        }
        Ok(())
    }
}
