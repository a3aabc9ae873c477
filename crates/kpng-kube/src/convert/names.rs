//! Names that repeat: each is in memory once, for as long as somebody uses it.

use std::collections::HashSet;
use std::sync::Arc;

/// The set of names in use. Never holds more than twice as many as are used (or [`MIN_PURGE`]).
#[derive(Debug, Default)]
pub(super) struct Names {
    names: HashSet<Arc<str>>,
    purge_at: usize,
}

const MIN_PURGE: usize = 1024;

impl Names {
    /// The one copy of `name`.
    pub(super) fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(name) = self.names.get(name) {
            return Arc::clone(name);
        }
        if self.names.len() >= self.purge_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.purge_at = MIN_PURGE.max(self.names.len() * 2);
        }
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_once_and_forgotten_when_unused() {
        let mut names = Names::default();
        let kept = names.intern("kept");
        assert!(Arc::ptr_eq(&kept, &names.intern("kept")));
        for i in 0..10_000 {
            drop(names.intern(&format!("gone-{i}")));
            assert!(names.names.len() <= MIN_PURGE);
        }
        assert!(Arc::ptr_eq(&kept, &names.intern("kept")));
    }
}
