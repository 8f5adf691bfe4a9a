//! From the bytes of a file to its documents.
//!
//! A file is split at `---` lines before it is parsed, so that a document that is not YAML does not hide what is
//! wrong with the others. A marker at the start of a line always ends a document: YAML allows it in no scalar.

use std::sync::Arc;

use serde_saphyr::{DuplicateKeyPolicy, options};

use crate::error::{Error, Place};
use crate::tree::{Json, Node, Yaml};

/// The longest file that is read.
pub(crate) const LONGEST_FILE: usize = 64 << 20;

/// How deep a document may be nested; the schemas in CustomResourceDefinitions need some sixty.
const DEEPEST: usize = 100;

/// The most values of one document, aliases replaced by what they stand for.
const MOST_VALUES: usize = 5_000_000;

/// The most values that a document's aliases may stand for.
const MOST_ALIASED: usize = 100_000;

/// One document that is not empty.
pub(crate) struct Document {
    /// Where it starts.
    pub place: Place,
    pub root: Node,
}

/// All documents of a file in their order, or what is wrong with those that are none.
pub(crate) fn documents(file: &Arc<str>, bytes: &[u8]) -> Vec<Result<Document, Error>> {
    let no_text = |reason: String| vec![Err(Error::File { file: file.clone(), reason })];
    if bytes.len() > LONGEST_FILE {
        return no_text(format!("longer than {} MiB; split it", LONGEST_FILE >> 20));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(e) => {
            return no_text(format!("not a manifest: byte {} is not UTF-8 text", e.valid_up_to()));
        }
    };
    if let Some(at) = text.find('\0') {
        return no_text(format!("not a manifest: byte {at} is NUL, so this is no text"));
    }
    // What a writer leaves that was stopped, or that had no room: a folder with it is not what somebody meant.
    if text.trim().is_empty() {
        return no_text(match &**file {
            "stdin" => "empty; nothing was piped in".to_string(),
            _ => "empty; remove the file if it is to say nothing".to_string(),
        });
    }
    let mut reader = Reader { file, documents: Vec::new(), count: 0 };
    if file.ends_with(".json") {
        reader.json(text, false);
    } else if !reader.json(text, true) {
        reader.yaml(text);
    }
    reader.documents
}

struct Reader<'r> {
    file: &'r Arc<str>,
    documents: Vec<Result<Document, Error>>,
    count: usize,
}

impl Reader<'_> {
    fn place(&self, line: Option<u32>) -> Place {
        Place { file: self.file.clone(), document: self.count, line }
    }

    fn keep(&mut self, line: u32, root: Node) {
        if !root.is_null() {
            self.documents.push(Ok(Document { place: self.place(Some(line)), root }));
        }
    }

    /// JSON values one after the other. As a trial, says whether the text is that, and leaves no trace if it is not.
    fn json(&mut self, text: &str, trial: bool) -> bool {
        if trial && !text.trim_start().starts_with('{') {
            return false;
        }
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Json>();
        let (mut line, mut seen) = (1, 0);
        loop {
            let rest = &text[values.byte_offset()..];
            let start = text.len() - rest.trim_start().len();
            line += newlines(&text[seen..start]);
            seen = start;
            match values.next() {
                None => return true,
                Some(Ok(Json(root))) => {
                    self.count += 1;
                    self.keep(line, root);
                }
                Some(Err(_)) if trial => {
                    self.documents.clear();
                    self.count = 0;
                    return false;
                }
                Some(Err(e)) => {
                    self.count += 1;
                    // serde_json ends its message with the place; the line is told apart already.
                    let (message, at) =
                        (e.to_string(), format!(" at line {} column {}", e.line(), e.column()));
                    let reason = format!("not JSON: {}", message.strip_suffix(&at).unwrap_or(&message));
                    let place = self.place(u32::try_from(e.line()).ok());
                    self.documents.push(Err(Error::Syntax { place, reason }));
                    return true;
                }
            }
        }
    }

    fn yaml(&mut self, text: &str) {
        let mut chunk = 0;
        let (mut line, mut chunk_line) = (0, 0);
        let mut offset = 0;
        for part in text.split_inclusive('\n') {
            let marker = |m| {
                part.strip_prefix(m)
                    .is_some_and(|rest: &str| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
            };
            if marker("---") && offset > chunk {
                self.yaml_document(&text[chunk..offset], chunk_line);
                (chunk, chunk_line) = (offset, line);
            } else if marker("...") {
                self.yaml_document(&text[chunk..offset], chunk_line);
                (chunk, chunk_line) = (offset + part.len(), line + 1);
            }
            offset += part.len();
            line += 1;
        }
        self.yaml_document(&text[chunk..], chunk_line);
    }

    /// One document, `above` lines below the top of the file.
    fn yaml_document(&mut self, text: &str, above: u32) {
        let content = |line: &&str| {
            let line = line.trim();
            // Directives (`%YAML 1.2`) stand before the first marker.
            let line = line.strip_prefix("---").map_or(line, str::trim_start);
            !(line.is_empty() || line.starts_with(['#', '%']))
        };
        let Some(first) = text.lines().position(|line| content(&line)) else {
            return;
        };
        self.count += 1;
        match serde_saphyr::from_str_with_options::<Yaml>(text, yaml_options()) {
            Ok(Yaml(mut root)) => {
                root.move_down(above);
                self.keep(above + first as u32 + 1, root);
            }
            Err(e) => {
                let line_of =
                    |e: &serde_saphyr::Error| e.location().map(|l| l.line() as u32).filter(|l| *l > 0);
                let line = line_of(&e).unwrap_or(first as u32 + 1) + above;
                self.documents.push(Err(Error::Syntax {
                    place: self.place(Some(line)),
                    reason: hinted(text, reason(&e)),
                }));
            }
        }
    }
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|b| *b == b'\n').count() as u32
}

fn yaml_options() -> serde_saphyr::Options {
    options! {
        // Told apart with both lines and the field's path when the tree is read.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // To the API server's reader `0755` and `1_000` are numbers, so no string field takes them. With a leading zero,
        // which may mean octal, it is a float here, so no number field takes it either.
        leading_zero_numbers_as_strings: false,
        underscored_numbers_as_strings: false,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_ALIASED },
        budget: serde_saphyr::budget! {
            max_depth: DEEPEST,
            max_nodes: MOST_VALUES,
            max_events: 4 * MOST_VALUES,
            max_total_scalar_bytes: LONGEST_FILE,
            // An anchor that is used more than a few times is usual; what all aliases stand for is bounded above.
            enforce_alias_anchor_ratio: false,
        },
    }
}

/// The reason, and what it may come from.
fn hinted(text: &str, reason: String) -> String {
    match text.contains("{{") {
        true => format!("{reason}; a Helm template must be rendered first (helm template)"),
        false => reason,
    }
}

/// The parser's message, or in plain words what a limit means.
fn reason(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    use serde_saphyr::budget::BudgetBreach;
    match error {
        Error::AliasError { error, .. } | Error::WithSnippet { error, .. } => reason(error),
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            format!("nested deeper than {DEEPEST} levels")
        }
        Error::Budget { breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. }, .. } => {
            format!("more than {MOST_VALUES} values in one document")
        }
        Error::Budget { breach: BudgetBreach::ScalarBytes { .. }, .. } => {
            format!("its aliases stand for more than {} MiB of text", LONGEST_FILE >> 20)
        }
        Error::AliasReplayLimitExceeded { .. } => {
            format!("its aliases stand for more than {MOST_ALIASED} values")
        }
        other => {
            // The message ends with the place in the document; ours is the place in the file.
            let message = other.to_string();
            let place = other.location().map(|l| format!(" at line {}, column {}", l.line(), l.column()));
            let message = place.and_then(|place| message.strip_suffix(&place)).unwrap_or(&message);
            format!("not YAML: {message}")
        }
    }
}
