//! `metadata`, and label selectors.

use std::sync::Arc;

use moat_policies::{Labels, NamespacedName, Operator, Requirement, Selector};

use crate::fields::{Context, MOST_TOLD, Path, shared};
use crate::names::{dns_label, label_key, label_value};
use crate::tree::{Node, Value};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// The longest that an object's annotations may be together.
const LONGEST_ANNOTATIONS: usize = 256 << 10;

const METADATA: &[&str] = &[
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// What moat reads of `metadata`.
pub(crate) struct Meta {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub labels: Labels,
    pub uid: Option<Arc<str>>,
    /// Kind and name of the owner that controls it.
    pub controller: Option<(Arc<str>, Arc<str>)>,
}

impl Meta {
    pub(crate) fn namespaced_name(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.clone(), self.name.clone())
    }
}

/// Where objects of a kind live, and what their names look like.
#[derive(Clone, Copy)]
pub(crate) struct Naming {
    pub namespaced: bool,
    pub rule: fn(&str) -> Result<(), String>,
}

/// `metadata` of an object.
pub(crate) fn metadata(c: &mut Context<'_>, object: &Node, naming: Naming) -> Option<Meta> {
    let root = Path::ROOT;
    let path = root.field("metadata");
    let node = c.require(object, &root, "metadata")?;
    c.object(node, &path, METADATA)?;
    let name = match (node.get("name"), node.get("generateName")) {
        (Some(name), _) => {
            c.parse(name, &path.field("name"), |text| (naming.rule)(text).map(|()| shared(text)))
        }
        (None, Some(prefix)) => {
            let reason = "only the cluster can make up a name; give the object one in metadata.name";
            c.refuse(prefix, &path.field("generateName"), reason);
            None
        }
        (None, None) => {
            c.require(node, &path, "name");
            None
        }
    };
    let namespace = match node.get("namespace") {
        Some(n) if naming.namespaced => match c.text(n, &path.field("namespace"))? {
            "" => Some(shared(DEFAULT_NAMESPACE)),
            text => c.parse(n, &path.field("namespace"), |_| dns_label(text).map(|()| shared(text))),
        },
        Some(n) if n.text() != Some("") => {
            c.refuse(n, &path.field("namespace"), "objects of this kind are in no namespace");
            None
        }
        _ => Some(shared(DEFAULT_NAMESPACE)),
    };
    let labels = labels(c, node, &path);
    annotations(c, node, &path);
    let uid = c.string(node, &path, "uid").filter(|uid| !uid.is_empty()).map(shared);
    let controller = controller(c, node, &path);
    Some(Meta { name: name?, namespace: namespace?, labels, uid, controller })
}

/// `metadata` of a Pod template: labels and annotations only.
pub(crate) fn template_labels(c: &mut Context<'_>, template: &Node, path: &Path<'_>) -> Labels {
    let Some(node) = template.get("metadata") else { return Labels::new() };
    let path = path.field("metadata");
    if c.object(node, &path, METADATA).is_none() {
        return Labels::new();
    }
    annotations(c, node, &path);
    labels(c, node, &path)
}

fn labels(c: &mut Context<'_>, metadata: &Node, path: &Path<'_>) -> Labels {
    let path_labels = path.field("labels");
    let mut labels = Labels::new();
    for (entry, value) in c.strings(metadata, path, "labels") {
        let at = path_labels.field(&entry.key);
        for problem in [label_key(&entry.key), label_value(value)].into_iter().filter_map(Result::err) {
            c.refuse_at(entry.line, &at, problem);
        }
        labels.insert(shared(&entry.key), shared(value));
    }
    labels
}

fn annotations(c: &mut Context<'_>, metadata: &Node, path: &Path<'_>) {
    let mut size = 0;
    for (entry, value) in c.strings(metadata, path, "annotations") {
        size += entry.key.len() + value.len();
        // The API folds the case of an annotation's key before it looks at it.
        if let Err(problem) = label_key(&entry.key.to_lowercase()) {
            c.refuse_at(entry.line, &path.field("annotations").field(&entry.key), problem);
        }
    }
    if let Some(node) = metadata.get("annotations").filter(|_| size > LONGEST_ANNOTATIONS) {
        let reason = format!("{size} bytes long together; at most {LONGEST_ANNOTATIONS} are allowed");
        c.refuse(node, &path.field("annotations"), reason);
    }
}

fn controller(c: &mut Context<'_>, metadata: &Node, path: &Path<'_>) -> Option<(Arc<str>, Arc<str>)> {
    let path_owners = path.field("ownerReferences");
    let mut found = None;
    for (i, owner) in c.list(metadata, path, "ownerReferences").iter().enumerate() {
        let path = path_owners.index(i);
        let known = &["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
        if c.object(owner, &path, known).is_some() && c.boolean(owner, &path, "controller") {
            let (kind, name) = (c.string(owner, &path, "kind"), c.string(owner, &path, "name"));
            found = kind.zip(name).map(|(kind, name)| (shared(kind), shared(name)));
        }
    }
    found
}

const OPERATORS: &[(&str, Operator)] = &[
    ("In", Operator::In),
    ("NotIn", Operator::NotIn),
    ("Exists", Operator::Exists),
    ("DoesNotExist", Operator::DoesNotExist),
];

/// A label selector. What is wrong with it is told, and left out: what is left selects everything that it could mean, and more.
pub(crate) fn selector(c: &mut Context<'_>, node: &Node, path: &Path<'_>) -> Selector {
    let before = c.errors.len();
    if c.object(node, path, &["matchLabels", "matchExpressions"]).is_none() || c.errors.len() > before {
        return Selector::everything();
    }
    let path_labels = path.field("matchLabels");
    let mut requirements = Vec::new();
    for (entry, value) in c.strings(node, path, "matchLabels") {
        let problems: Vec<String> =
            [label_key(&entry.key), label_value(value)].into_iter().filter_map(Result::err).collect();
        if problems.is_empty() {
            requirements.extend(Requirement::new(shared(&entry.key), Operator::In, [shared(value)]));
        }
        for problem in problems {
            c.refuse_at(entry.line, &path_labels.field(&entry.key), problem);
        }
    }
    let path_expressions = path.field("matchExpressions");
    for (i, expression) in c.list(node, path, "matchExpressions").iter().enumerate() {
        let before = c.errors.len();
        let requirement = requirement(c, expression, &path_expressions.index(i));
        // A full list of errors grows no more.
        requirements.extend(requirement.filter(|_| c.errors.len() == before && before < MOST_TOLD));
    }
    Selector::new(requirements)
}

fn requirement(c: &mut Context<'_>, node: &Node, path: &Path<'_>) -> Option<Requirement> {
    c.object(node, path, &["key", "operator", "values"])?;
    let key = c
        .require(node, path, "key")
        .and_then(|n| c.parse(n, &path.field("key"), |text| label_key(text).map(|()| shared(text))));
    let operator = c.require(node, path, "operator").and_then(|_| c.word(node, path, "operator", OPERATORS));
    let path_values = path.field("values");
    let mut values = Vec::new();
    for (i, value) in c.list(node, path, "values").iter().enumerate() {
        let check = |text: &str| label_value(text).map(|()| shared(text));
        match value.is_null() {
            true => values.push(shared("")),
            false => values.extend(c.parse(value, &path_values.index(i), check)),
        }
    }
    let given =
        matches!(node.get("values"), Some(Node { value: Value::List(items), .. }) if !items.is_empty());
    match operator? {
        Operator::In | Operator::NotIn if !given => {
            c.refuse(node, &path_values, "must hold at least one value where the operator is In or NotIn");
            None
        }
        Operator::Exists | Operator::DoesNotExist if given => {
            c.refuse(node, &path_values, "must hold no value where the operator is Exists or DoesNotExist");
            None
        }
        operator => Requirement::new(key?, operator, values).ok(),
    }
}
