//! Nothing is kept of what is gone.

use proptest::prelude::*;

use super::Cluster;
use crate::{Key, Object};

// The random clusters of the crate's own tests, which call the crate by its name.
#[path = "../../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

/// An object comes or goes; then perhaps a commit.
fn steps() -> impl Strategy<Value = Vec<(bool, Object, bool)>> {
    prop::collection::vec((prop::bool::weighted(0.7), support::object(), any::<bool>()), 1..60)
}

proptest! {
    #[test]
    fn nothing_is_kept_of_objects_that_are_gone(steps in steps()) {
        let mut cluster = Cluster::new();
        for (comes, object, commit) in steps {
            match comes {
                true => cluster.apply(object),
                false => cluster.delete(&object.key()),
            }
            if commit {
                cluster.commit();
            }
        }
        let left: Vec<Key> = cluster.objects().keys().collect();
        left.iter().for_each(|key| cluster.delete(key));
        cluster.commit();
        prop_assert!(cluster.compiler.is_empty());
    }
}
