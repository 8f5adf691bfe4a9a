//! Names by content: the same content has the same name in every process, and nobody can make two contents share one.

use crate::{Allow, Excess, Operator, PortClass, Program, Selector};

/// A hash over typed, length-prefixed parts, so that no two sequences of parts run into each other.
pub(crate) struct ContentHash(blake3::Hasher);

impl ContentHash {
    pub(crate) fn new(kind: &str) -> Self {
        let mut hash = Self(blake3::Hasher::new());
        hash.text(kind);
        hash
    }

    pub(crate) fn number(&mut self, number: usize) -> &mut Self {
        self.0.update(&(number as u64).to_le_bytes());
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len()).0.update(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn selector(&mut self, selector: &Selector) -> &mut Self {
        self.number(selector.requirements().len());
        for requirement in selector.requirements() {
            let operator = match requirement.operator() {
                Operator::In => 0,
                Operator::NotIn => 1,
                Operator::Exists => 2,
                Operator::DoesNotExist => 3,
            };
            self.text(requirement.key()).number(operator).number(requirement.values().len());
            for value in requirement.values() {
                self.text(value);
            }
        }
        self
    }

    pub(crate) fn program(&mut self, program: &Program) -> &mut Self {
        let Program { every, classes, named, excess } = program;
        self.allow(every.as_ref());
        self.number(classes.len());
        for PortClass { ports, allow } in classes {
            self.number(ports.len());
            for range in ports {
                self.number(range.protocol.number().into());
                self.number(range.first.into()).number(range.last.into());
            }
            self.allow(Some(allow));
        }
        self.bytes(named.as_ref().map_or(&[], |set| &set.0));
        // Nothing is added where there is none: such a program is called what it always was.
        match excess {
            None => self,
            Some(Excess::Classes(limit)) => self.number(1).number(*limit),
            Some(Excess::Work(limit)) => self.number(2).number(*limit),
        }
    }

    fn allow(&mut self, allow: Option<&Allow>) {
        match allow {
            None => self.number(0),
            Some(Allow::Everyone) => self.number(1),
            Some(Allow::Set(set)) => self.number(2).bytes(&set.0),
        };
    }

    pub(crate) fn finish(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        id
    }
}
