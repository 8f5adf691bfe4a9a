//! A collection of files that change one by one says what a decoding of all of them says.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use moat_manifests::{
    Changes, Collection, Error, Errors, Part, PodStatus, Position, Source, decode, decode_pod_status,
    fingerprint, on_a_deep_stack,
};
use moat_policies::{Key, NamespacedName, Object};
use proptest::prelude::*;

const OBJECTS: &[&str] = &[
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}",
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}",
    "{apiVersion: v1, kind: Node, metadata: {name: n1}}",
    "{apiVersion: v1, kind: Node, metadata: {name: n2}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {a: b}, uid: u}, spec: {containers: [{name: c, image: i}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: d-0}, spec: {containers: [{name: c, image: i}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: owned, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, \
     name: r, uid: u, controller: true}]}, spec: {containers: [{name: c, image: i}]}}",
    "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: 1, selector: {matchLabels: {a: b}}, \
     template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {replicas: 2, selector: {matchLabels: {a: b}}, \
     template: {metadata: {labels: {a: b, c: d}}, spec: {containers: [{name: c, image: i}]}}}}",
    "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: d}, spec: {replicas: 1, selector: {matchLabels: {a: b}}, \
     template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: everywhere}, spec: {selector: {matchLabels: {a: b}}, \
     template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: r, ownerReferences: [{apiVersion: apps/v1, \
     kind: Deployment, name: d, uid: u, controller: true}]}, spec: {replicas: 1, selector: {matchLabels: {a: b}}, \
     template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}",
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}, ingress: [{}]}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: odd, strange: 1}, spec: {containers: [{name: c, image: i}]}}",
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad}, spec: {podSelektor: {}}}",
    "{not: a, manifest: }}",
];

const STATES: &[&str] = &[
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: n1}, status: {podIP: 10.0.0.1}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: n2}, status: {podIP: 10.0.0.2}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: d-0}, spec: {nodeName: n2}, status: {podIP: 10.0.0.3}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {phase: Failed}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: nobody}, status: {podIP: 10.0.0.4}}",
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {podIP: 10.0.0.400}}",
];

const FILES: &[(Part, usize, &str)] = &[
    (Part::Manifests, 0, "a.yaml"),
    (Part::Manifests, 0, "c.yaml"),
    (Part::Manifests, 0, "b/a.yaml"),
    (Part::Manifests, 1, "a.yaml"),
    (Part::PodStatus, 0, "a.yaml"),
    (Part::PodStatus, 0, "b.yaml"),
    (Part::PodStatus, 1, "a.yaml"),
];

/// What happens to one file. `None`: it goes.
type Edit = (usize, Option<Vec<usize>>);

fn edit() -> impl Strategy<Value = Edit> {
    let content = prop::collection::vec(0..OBJECTS.len(), 0..4);
    (0..FILES.len(), prop::option::weighted(0.8, content))
}

fn name(file: usize) -> Arc<str> {
    let (part, root, path) = FILES[file];
    Arc::from(format!("{part:?}/{root}/{path}"))
}

fn text(file: usize, lines: &[usize]) -> Vec<u8> {
    let of = if FILES[file].0 == Part::Manifests { OBJECTS } else { STATES };
    lines.iter().map(|line| format!("{}\n---\n", of[line % of.len()])).collect::<String>().into_bytes()
}

fn position(file: usize) -> Position {
    let (part, root, path) = FILES[file];
    Position::file(part, root, Path::new(path))
}

/// Who follows the changes of a collection.
#[derive(Default)]
struct Follower {
    objects: BTreeMap<Key, Object>,
    states: BTreeMap<NamespacedName, PodStatus>,
}

impl Follower {
    fn follow(&mut self, changes: Changes) {
        for key in changes.delete {
            self.objects.remove(&key);
        }
        for object in changes.apply {
            self.objects.insert(object.key(), object);
        }
        for (pod, state) in changes.states {
            match state {
                Some(state) => drop(self.states.insert(pod, state)),
                None => drop(self.states.remove(&pod)),
            }
        }
    }

    fn with_states(&self) -> BTreeMap<Key, Object> {
        let mut objects = self.objects.clone();
        for object in objects.values_mut() {
            if let Object::Pod(pod) = object
                && let Some(state) = self.states.get(&pod.name)
            {
                state.put_over(pod);
            }
        }
        objects
    }
}

fn whole(files: &BTreeMap<Position, Source>) -> Result<BTreeMap<Key, Object>, BTreeSet<String>> {
    let of = |part: Part| {
        let files = files.iter().filter(move |(position, _)| position.part() == part);
        files.map(|(_, source)| (&*source.file, &source.bytes[..]))
    };
    match (decode(of(Part::Manifests)), decode_pod_status(of(Part::PodStatus))) {
        (Ok(mut manifests), Ok(states)) => {
            manifests.overlay(&states);
            Ok(manifests.objects.into_iter().map(|object| (object.key(), object)).collect())
        }
        (manifests, states) => {
            Err(manifests.err().into_iter().chain(states.err()).flat_map(|e| told(&e)).collect())
        }
    }
}

/// The errors; of an object that is there twice, not which of the others is named.
fn told(errors: &Errors) -> Vec<String> {
    let text = |error: &Error| match error {
        Error::Twice { place, object, .. } => format!("{place}: {object} is there already"),
        other => other.to_string(),
    };
    errors.iter().map(text).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leads_where_a_fresh_start_leads(
        steps in prop::collection::vec(prop::collection::vec(edit(), 1..4), 1..12)
    ) {
        on_a_deep_stack(|| history(steps))?;
    }
}

/// `steps`: what changes before the next look.
fn history(steps: Vec<Vec<Edit>>) -> Result<(), TestCaseError> {
    let mut collection = Collection::new();
    let mut follower = Follower::default();
    let mut files: BTreeMap<Position, Source> = BTreeMap::new();
    for edits in steps {
        for (file, content) in edits {
            let position = position(file);
            match content {
                Some(lines) => {
                    let source = Source { file: name(file), bytes: text(file, &lines) };
                    let news = collection.put(&position, &source.file, &source.bytes);
                    prop_assert_eq!(news, files.get(&position) != Some(&source));
                    files.insert(position, source);
                }
                None => {
                    prop_assert_eq!(collection.remove(&position), files.remove(&position).is_some());
                }
            }
        }
        prop_assert_eq!(collection.fingerprint(), fingerprint(files.values()));
        match (collection.commit(), whole(&files)) {
            (Ok(changes), Ok(objects)) => {
                follower.follow(changes);
                prop_assert_eq!(follower.with_states(), objects);
            }
            (Err(errors), Err(expected)) => {
                prop_assert_eq!(told(&errors).into_iter().collect::<BTreeSet<_>>(), expected);
            }
            (now, expected) => prop_assert!(false, "{:?}, expected {:?}", now, expected),
        }
    }
    Ok(())
}

fn put(collection: &mut Collection, file: usize, text: &str) {
    collection.put(&position(file), &name(file), text.as_bytes());
}

#[test]
fn only_what_a_changed_file_says_is_told() {
    let mut collection = Collection::new();
    put(&mut collection, 0, OBJECTS[0]);
    put(&mut collection, 1, OBJECTS[4]);
    assert_eq!(collection.commit().unwrap().apply.len(), 2);
    assert!(collection.commit().unwrap().is_empty());
    put(&mut collection, 1, OBJECTS[13]);
    let changes = collection.commit().unwrap();
    assert_eq!(changes.apply.len(), 1);
    assert_eq!(changes.delete, [Key::Pod(NamespacedName::new("default", "p"))]);
}

#[test]
fn an_object_may_move_to_another_file() {
    let mut collection = Collection::new();
    put(&mut collection, 0, OBJECTS[4]);
    collection.commit().unwrap();
    put(&mut collection, 1, OBJECTS[4]);
    let errors = collection.commit().unwrap_err().to_string();
    assert!(errors.contains("c.yaml") && errors.contains("a.yaml"), "{errors}");
    collection.remove(&position(0));
    assert!(collection.commit().unwrap().delete.is_empty());
}

#[test]
fn what_cannot_be_read_stands_in_the_way_until_it_goes() {
    let mut collection = Collection::new();
    put(&mut collection, 0, OBJECTS[0]);
    collection.commit().unwrap();
    let reason = "Permission denied".to_string();
    let error = Error::Read { file: name(1), kind: std::io::ErrorKind::PermissionDenied, reason };
    collection.fail(&position(1), error.clone());
    collection.remove(&position(0));
    assert_eq!(collection.commit().unwrap_err().iter().collect::<Vec<_>>(), [&error]);
    assert!(collection.remove(&position(1)));
    assert_eq!(collection.commit().unwrap().delete.len(), 1);
    assert_eq!(collection.fingerprint(), fingerprint([]));
}

#[test]
fn positions_are_in_the_order_in_which_files_are_found() {
    let root = tempfile::TempDir::new().unwrap();
    for file in ["z.yaml", "b/a.yaml", "a.json", "b/a/x.yml", "a-b/q.yaml", "b.yaml", "b/z.yaml"] {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let mut folders = 0;
    let found = moat_manifests::walk(root.path(), |_| folders += 1).files;
    let below = |path: &std::path::PathBuf| path.strip_prefix(root.path()).unwrap().to_owned();
    let positions: Vec<Position> =
        found.iter().map(|path| Position::file(Part::Manifests, 0, &below(path))).collect();
    assert_eq!((found.len(), folders), (7, 4));
    assert!(positions.is_sorted(), "{found:?}");
}
