//! From documents to objects: lists opened, kinds told apart, twins found.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use moat_policies::{Key, NamespacedName, Object};

use crate::Manifests;
use crate::cluster::{namespace, node};
use crate::error::{Error, Errors, Place, Warning};
use crate::fields::{Context, Path};
use crate::kinds::{Use, is_list_of, use_of};
use crate::meta::Meta;
use crate::network_config::network_config;
use crate::pod::pod;
use crate::policy::network_policy;
use crate::stack::on_a_deep_stack;
use crate::text::{Document, documents};
use crate::tree::{Node, Value};
use crate::workload::{Owner, Template, WorkloadKind, expand, workload};

/// How deep a List may hold Lists.
const DEEPEST_LIST: usize = 8;

/// Decodes files that somebody else has read: names and bytes.
///
/// Nothing comes out of an input that holds an error; all of them are told.
pub fn decode<'s>(files: impl IntoIterator<Item = (&'s str, &'s [u8])>) -> Result<Manifests, Errors> {
    let files: Vec<(&str, &[u8])> = files.into_iter().collect();
    on_a_deep_stack(|| {
        let mut decoder = Decoder::default();
        for (file, bytes) in files {
            decoder.file(&Arc::from(file), bytes);
        }
        decoder.finish()
    })
}

/// What one object, or several with the same name, is told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Identity {
    Object(Key),
    Workload(WorkloadKind, NamespacedName),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Object(key) => key.fmt(f),
            Identity::Workload(kind, name) => write!(f, "{kind} {name}"),
        }
    }
}

/// What the files that were decoded so far hold.
#[derive(Default)]
pub(crate) struct Decoder {
    pub objects: Vec<Object>,
    pub templates: Vec<(Template, Place)>,
    /// The pods that a workload controls.
    pub owned: BTreeMap<Owner, Vec<NamespacedName>>,
    /// Every object that was read.
    pub seen: HashMap<Identity, Place>,
    skipped: BTreeMap<String, usize>,
    pub errors: Vec<Error>,
    pub warnings: Vec<Warning>,
}

impl Decoder {
    /// Decodes one more file. Needs a deep stack.
    pub(crate) fn file(&mut self, file: &Arc<str>, bytes: &[u8]) {
        for document in documents(file, bytes) {
            match document {
                Ok(document) => self.document(document),
                Err(error) => self.errors.push(error),
            }
        }
    }

    fn document(&mut self, document: Document) {
        let Document { place, root } = document;
        self.context(&place, false).refuse_duplicate_keys(&root, &Path::ROOT);
        self.object(&place, &root, None, 0);
    }

    fn context<'c>(&'c mut self, place: &'c Place, strict: bool) -> Context<'c> {
        Context { place, errors: &mut self.errors, warnings: &mut self.warnings, strict, stored: false }
    }

    /// One object, or a list of them. Items of a list of one kind may leave out what they are.
    fn object(&mut self, place: &Place, root: &Node, implied: Option<(&str, &str)>, depth: usize) {
        let path = Path::ROOT;
        let mut c = self.context(place, false);
        if !matches!(root.value, Value::Map(_)) {
            return c.refuse(root, &path, format!("must be a Kubernetes object, not {}", root.what()));
        }
        let mut required = |field: &str, implied: Option<&str>| -> Option<String> {
            let Some(node) = root.get(field) else {
                if implied.is_none() {
                    c.require(root, &path, field);
                }
                return implied.map(str::to_string);
            };
            let text = c.text(node, &path.field(field))?;
            if text.is_empty() {
                c.refuse(node, &path.field(field), "must not be empty");
                return None;
            }
            Some(text.to_string())
        };
        let kind = required("kind", implied.map(|(_, kind)| kind));
        let api_version = required("apiVersion", implied.map(|(version, _)| version));
        let (Some(kind), Some(api_version)) = (kind, api_version) else { return };
        if let Some(of) = kind.strip_suffix("List")
            && (is_list_of(&api_version, of)
                || matches!(root.get("items"), Some(Node { value: Value::List(_), .. })))
        {
            return self.list(place, root, (&api_version, of), depth);
        }
        match use_of(&api_version, &kind) {
            Ok(wanted) => self.one(place, root, &kind, wanted),
            Err((field, reason)) => {
                let node = root.get(field).unwrap_or(root);
                self.context(place, false).refuse(node, &path.field(field), reason);
            }
        }
    }

    fn list(&mut self, place: &Place, root: &Node, (api_version, of): (&str, &str), depth: usize) {
        let path = Path::ROOT;
        let mut c = self.context(place, false);
        c.object(root, &path, &["apiVersion", "kind", "metadata", "items"]);
        if depth == DEEPEST_LIST {
            return c.refuse(root, &path, format!("lists nested deeper than {DEEPEST_LIST}"));
        }
        let implied = (!of.is_empty()).then_some((api_version, of));
        for (i, item) in c.list(root, &path, "items").iter().enumerate() {
            let before = (self.errors.len(), self.warnings.len());
            self.object(place, item, implied, depth + 1);
            // What is wrong with an item is told with its path in the document.
            let prefix = |field: &mut String| {
                *field = match &**field {
                    "the document" => format!("items[{i}]"),
                    field => format!("items[{i}].{field}"),
                }
            };
            self.errors[before.0..].iter_mut().for_each(|e| {
                if let Error::Field { field, .. } = e {
                    prefix(field);
                }
            });
            self.warnings[before.1..].iter_mut().for_each(|w| prefix(&mut w.field));
        }
    }

    fn one(&mut self, place: &Place, root: &Node, kind: &str, wanted: Use) {
        let place =
            &Place { line: if root.line > 0 { Some(root.line) } else { place.line }, ..place.clone() };
        let strict = matches!(wanted, Use::NetworkPolicy | Use::NetworkConfig);
        let mut c = self.context(place, strict);
        let object = match wanted {
            Use::Skip => {
                *self.skipped.entry(kind.to_string()).or_default() += 1;
                return;
            }
            Use::Namespace => namespace(&mut c, root).map(Object::Namespace),
            Use::Node => node(&mut c, root).map(Object::Node),
            Use::NetworkPolicy => network_policy(&mut c, root).map(Object::Policy),
            Use::NetworkConfig => network_config(&mut c, root).map(Object::Config),
            Use::Pod => pod(&mut c, root).map(|(pod, meta)| {
                self.note_owner(&meta);
                Object::Pod(pod)
            }),
            Use::Workload(kind) => {
                if let Some(template) = workload(&mut c, root, kind)
                    && self.is_new(template.identity(), place)
                {
                    self.templates.push((template, place.clone()));
                }
                return;
            }
        };
        if let Some(object) = object
            && self.is_new(Identity::Object(object.key()), place)
        {
            self.objects.push(object);
        }
    }

    fn note_owner(&mut self, pod: &Meta) {
        if let Some((kind, name)) = &pod.controller {
            let owner = (kind.clone(), NamespacedName::new(pod.namespace.clone(), name.clone()));
            self.owned.entry(owner).or_default().push(pod.namespaced_name());
        }
    }

    /// Whether no document before has described this object; else says so.
    fn is_new(&mut self, object: Identity, place: &Place) -> bool {
        match self.seen.get(&object) {
            None => {
                self.seen.insert(object, place.clone());
                true
            }
            Some(first) => {
                let (place, first) = (place.clone(), first.clone());
                self.errors.push(Error::Twice { place, object: object.to_string(), first });
                false
            }
        }
    }

    fn finish(mut self) -> Result<Manifests, Errors> {
        let nodes: BTreeSet<Arc<str>> = self
            .objects
            .iter()
            .filter_map(|o| if let Object::Node(n) = o { Some(n.name.clone()) } else { None })
            .collect();
        let (templates, places): (Vec<Template>, Vec<Place>) =
            std::mem::take(&mut self.templates).into_iter().unzip();
        let expansion = expand(&templates.iter().collect::<Vec<_>>(), &nodes, &self.owned);
        for (template, pod) in expansion.pods {
            let object = Object::Pod(pod);
            if self.is_new(Identity::Object(object.key()), &places[template]) {
                self.objects.push(object);
            }
        }
        let Decoder { objects, skipped, errors, warnings, .. } = self;
        Errors::or(errors, Manifests { objects, workloads: expansion.workloads, skipped, warnings })
    }
}
