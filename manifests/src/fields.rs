//! Reading a document's fields: typed, one by one, collecting all that is wrong.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cidr::{cidr, old_cidr};
use crate::error::{Error, Place, Warning};
use crate::tree::{Entry, Node, Value, shorten};

/// The most errors, and the most warnings, that are told: an input can hold millions, each with a path.
pub(crate) const MOST_TOLD: usize = 10_000;

/// What a number must be that is a float to the reader.
pub(crate) const WHOLE: &str = "a whole number, without leading zeros, point or exponent";

/// The path of a field, as the API server writes it.
#[derive(Clone, Copy)]
pub(crate) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
}

impl Path<'static> {
    /// The document itself.
    pub(crate) const ROOT: Path<'static> = Path { parent: None, step: Step::Root };
}

impl<'p> Path<'p> {
    pub(crate) fn field(&'p self, name: &'p str) -> Path<'p> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    pub(crate) fn index(&'p self, index: usize) -> Path<'p> {
        Path { parent: Some(self), step: Step::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below_root = self.parent.is_none_or(|p| matches!(p.step, Step::Root));
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Field(name) => match shorten(name) {
                // A label's key is no field's name.
                key if key.contains(['.', '/', ' ']) => write!(f, "[{key:?}]"),
                name if below_root => f.write_str(&name),
                name => write!(f, ".{name}"),
            },
        }
    }
}

/// What is read of one object, and what is wrong with it.
pub(crate) struct Context<'c> {
    /// Where the object's document starts.
    pub place: &'c Place,
    pub errors: &'c mut Vec<Error>,
    pub warnings: &'c mut Vec<Warning>,
    /// Unknown fields are errors, not warnings.
    pub strict: bool,
    /// It is in an API server, which may have taken it by other rules than are in force for a new one.
    pub stored: bool,
}

impl Context<'_> {
    fn at(&self, line: u32) -> Place {
        let line = if line > 0 { Some(line) } else { self.place.line };
        Place { line, ..self.place.clone() }
    }

    /// Something is wrong with the field at `path`, which stands at `node`'s line.
    pub(crate) fn refuse(&mut self, node: &Node, path: &Path<'_>, reason: impl Into<String>) {
        self.refuse_at(node.line, path, reason);
    }

    pub(crate) fn refuse_at(&mut self, line: u32, path: &Path<'_>, reason: impl Into<String>) {
        if self.errors.len() >= MOST_TOLD {
            return;
        }
        let field = match path.to_string() {
            root if root.is_empty() => "the document".to_string(),
            field => field,
        };
        self.errors.push(Error::Field { place: self.at(line), field, reason: reason.into() });
    }

    /// Something is odd about it.
    pub(crate) fn warn(&mut self, line: u32, path: &Path<'_>, reason: impl Into<String>) {
        if self.warnings.len() >= MOST_TOLD {
            return;
        }
        let warning = Warning { place: self.at(line), field: path.to_string(), reason: reason.into() };
        self.warnings.push(warning);
    }

    /// A mapping whose fields are these; others are refused or warned of.
    pub(crate) fn object<'n>(&mut self, node: &'n Node, path: &Path<'_>, known: &[&str]) -> Option<&'n Node> {
        for entry in self.entries(node, path)? {
            if !known.contains(&&*entry.key) {
                let field = path.field(&entry.key);
                let reason = unknown_field(&entry.key, known);
                match self.strict {
                    true => self.refuse_at(entry.line, &field, reason),
                    false => self.warn(entry.line, &field, reason),
                }
            }
        }
        Some(node)
    }

    fn entries<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Map(entries) => Some(entries),
            _ => self.wrong_type(node, path, "an object"),
        }
    }

    /// A list's items; none where the list is missing or null.
    pub(crate) fn list<'n>(&mut self, parent: &'n Node, path: &Path<'_>, name: &str) -> &'n [Node] {
        match parent.get(name) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) => items,
            Some(other) => self.wrong_type(other, &path.field(name), "a list").unwrap_or_default(),
        }
    }

    /// A string; `None` where it is missing, null or no string.
    pub(crate) fn string<'n>(&mut self, parent: &'n Node, path: &Path<'_>, name: &str) -> Option<&'n str> {
        let node = parent.get(name)?;
        self.text(node, &path.field(name))
    }

    /// This node as a string.
    pub(crate) fn text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                self.wrong_type(node, path, "a string; put it in quotes")
            }
            _ => self.wrong_type(node, path, "a string"),
        }
    }

    /// A whole number; `None` where it is missing, null or none.
    pub(crate) fn number(&mut self, parent: &Node, path: &Path<'_>, name: &str) -> Option<i64> {
        let node = parent.get(name)?;
        match &node.value {
            Value::Int(number) => Some(*number),
            Value::Text(text) if text.parse::<i64>().is_ok() => {
                self.wrong_type(node, &path.field(name), "a whole number, without quotes")
            }
            Value::Float(_) => self.wrong_type(node, &path.field(name), WHOLE),
            _ => self.wrong_type(node, &path.field(name), "a whole number"),
        }
    }

    /// A boolean; false where it is missing, null or none.
    pub(crate) fn boolean(&mut self, parent: &Node, path: &Path<'_>, name: &str) -> bool {
        match parent.get(name) {
            None => false,
            Some(Node { value: Value::Bool(value), .. }) => *value,
            Some(node) => self.wrong_type(node, &path.field(name), "true or false").unwrap_or_default(),
        }
    }

    /// Strings by name, as labels are. A null value is the empty string, as the API server has it.
    pub(crate) fn strings<'n>(
        &mut self,
        parent: &'n Node,
        path: &Path<'_>,
        name: &str,
    ) -> Vec<(&'n Entry, &'n str)> {
        let Some(node) = parent.get(name) else { return Vec::new() };
        let path = path.field(name);
        let entries = self.entries(node, &path).unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| match &entry.node.value {
                Value::Null => Some((entry, "")),
                _ => Some((entry, self.text(&entry.node, &path.field(&entry.key))?)),
            })
            .collect()
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        parent: &Node,
        path: &Path<'_>,
        name: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        self.one_of(parent.get(name)?, &path.field(name), words)
    }

    /// This node as one of a few words.
    pub(crate) fn one_of<T: Copy>(&mut self, node: &Node, path: &Path<'_>, words: &[(&str, T)]) -> Option<T> {
        self.parse(node, path, |text| {
            let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            found.ok_or_else(|| {
                let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("{text:?} is not one of {}", all.join(", "))
            })
        })
    }

    /// A field that must be there.
    pub(crate) fn require<'n>(&mut self, parent: &'n Node, path: &Path<'_>, name: &str) -> Option<&'n Node> {
        let found = parent.get(name);
        if found.is_none() {
            self.refuse(parent, &path.field(name), "missing, and required");
        }
        found
    }

    /// Text that a rule of its own parses.
    pub(crate) fn parse<T>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(node, path)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.refuse(node, path, reason);
                None
            }
        }
    }

    /// A CIDR; of a stored object also in a form that only older servers took, with a warning.
    pub(crate) fn cidr(&mut self, node: &Node, path: &Path<'_>) -> Option<IpNet> {
        let taken = node.text().filter(|text| self.stored && cidr(text).is_err()).and_then(old_cidr);
        let Some(net) = taken else { return self.parse(node, path, cidr) };
        self.warn(node.line, path, format!("{} is taken as {net}; write that", node.what()));
        Some(net)
    }

    fn wrong_type<T>(&mut self, node: &Node, path: &Path<'_>, wanted: &str) -> Option<T> {
        self.refuse(node, path, format!("must be {wanted}, not {}", node.what()));
        None
    }

    /// Keys that stand twice in one mapping, anywhere in the document.
    pub(crate) fn refuse_duplicate_keys(&mut self, node: &Node, path: &Path<'_>) {
        match &node.value {
            Value::List(items) => {
                items.iter().enumerate().for_each(|(i, n)| self.refuse_duplicate_keys(n, &path.index(i)));
            }
            Value::Map(entries) => {
                let mut keys: Vec<(&str, usize)> =
                    entries.iter().enumerate().map(|(i, e)| (&*e.key, i)).collect();
                keys.sort_unstable();
                for pair in keys.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                    let (first, again) = (&entries[pair[0].1], &entries[pair[1].1]);
                    let before = match first.line {
                        0 => String::new(),
                        line => format!(", before at line {line}"),
                    };
                    self.refuse_at(again.line, &path.field(&again.key), format!("there twice{before}"));
                }
                entries.iter().for_each(|e| self.refuse_duplicate_keys(&e.node, &path.field(&e.key)));
            }
            _ => {}
        }
    }
}

/// An address, in the one form that the API server takes since v1.36.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let address = IpAddr::from_str(text).map_err(|_| match leading_zeros(text) {
        true => format!("{text:?} has leading zeros, which some read as octal"),
        false => format!("{text:?} is not an IP address such as 10.9.8.7 or 2001:db8::ffff"),
    })?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{text:?} is an IPv4-mapped IPv6 address; write the IPv4 address"))
        }
        _ => Ok(address),
    }
}

/// Whether this would be an IPv4 address (or the start of a CIDR) but for leading zeros.
pub(crate) fn leading_zeros(text: &str) -> bool {
    let octets: Vec<&str> = text.split('.').collect();
    octets.len() == 4
        && octets.iter().all(|o| !o.is_empty() && o.len() < 9 && o.bytes().all(|b| b.is_ascii_digit()))
        && octets.iter().any(|o| o.len() > 1 && o.starts_with('0'))
}

fn unknown_field(name: &str, known: &[&str]) -> String {
    // A name so much longer or shorter is none of these, and need not be looked at: it can be millions of letters long.
    let near = known.iter().filter(|k| k.len().abs_diff(name.len()) <= 2);
    match near.map(|k| (distance(name, k), k)).min() {
        Some((0..=2, near)) => format!("no such field; did you mean {near}?"),
        _ => "no such field".into(),
    }
}

/// How many letters must be put in, taken out or exchanged, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()]
}

/// A shared string.
pub(crate) fn shared(text: &str) -> Arc<str> {
    Arc::from(text)
}
