//! A document as a tree of values that know their lines.
//!
//! Fields are read from the tree one by one, so that every mistake of a document is found, not only the first.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and the line where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    /// From 1; 0: not known, as in JSON.
    pub line: u32,
    pub value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    List(Vec<Node>),
    /// In the order of the text; a key may be there twice.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Debug)]
pub(crate) struct Entry {
    pub line: u32,
    pub key: Box<str>,
    pub node: Node,
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The entry's value, where this is a mapping that has it, not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => {
                entries.iter().find(|e| *e.key == *key).map(|e| &e.node).filter(|n| !n.is_null())
            }
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value it is, for a person.
    pub(crate) fn what(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("the boolean {b}"),
            Value::Int(i) => format!("the number {i}"),
            Value::Float(f) => format!("the number {f}"),
            Value::Text(t) => format!("the string {:?}", shorten(t)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "an object".into(),
        }
    }

    /// Adds lines to every line below, for a document that is not the first of its file.
    pub(crate) fn move_down(&mut self, lines: u32) {
        self.line += lines;
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|n| n.move_down(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|e| {
                e.line += lines;
                e.node.move_down(lines);
            }),
            _ => {}
        }
    }
}

/// The start of a text that may be long.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// A node as serde-saphyr reads it: with lines.
pub(crate) struct Yaml(pub Node);

/// A node as serde_json reads it: without.
pub(crate) struct Json(pub Node);

/// How one of the two readers gives keys and values.
trait Reader<'de>: Deserialize<'de> {
    type Key: Deserialize<'de>;
    fn key(key: Self::Key) -> (u32, Box<str>);
    fn node(self) -> Node;
}

impl<'de> Reader<'de> for Yaml {
    type Key = Spanned<String>;

    fn key(key: Self::Key) -> (u32, Box<str>) {
        (line(&key.referenced), key.value.into())
    }

    fn node(self) -> Node {
        self.0
    }
}

impl<'de> Reader<'de> for Json {
    type Key = String;

    fn key(key: String) -> (u32, Box<str>) {
        (0, key.into())
    }

    fn node(self) -> Node {
        self.0
    }
}

fn line(location: &serde_saphyr::Location) -> u32 {
    u32::try_from(location.line()).unwrap_or(0)
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: Inner(value), referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Yaml(Node { line: line(&referenced), value }))
    }
}

/// The value inside a [`Spanned`].
struct Inner(Value);

impl<'de> Deserialize<'de> for Inner {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values::<Yaml>(PhantomData)).map(Inner)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(Values::<Json>(PhantomData))?;
        Ok(Json(Node { line: 0, value }))
    }
}

struct Values<R>(PhantomData<R>);

impl<'de, R: Reader<'de>> Visitor<'de> for Values<R> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        // No field has such numbers; as a float it is refused where a whole number is wanted.
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Int))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<R>()? {
            items.push(item.node());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<R::Key, R>()? {
            let (line, key) = R::key(key);
            entries.push(Entry { line, key, node: value.node() });
        }
        Ok(Value::Map(entries))
    }
}
