//! Many short texts in one piece of memory: each by itself would take twice its length, and more where they come and go.

/// Texts, by where they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts {
    all: String,
    /// How much of it nobody has any more.
    waste: usize,
}

/// Where a text is. Whoever has it gives it back by [`Texts::remove`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    from: u32,
    len: u32,
}

/// So much waste is not worth a look.
const LITTLE: usize = 4096;

impl Texts {
    pub(crate) fn insert(&mut self, text: &str) -> Text {
        let from = self.all.len();
        self.all.push_str(text);
        u32::try_from(self.all.len()).expect("names of less than 4 GiB fit in memory");
        Text { from: from as u32, len: text.len() as u32 }
    }

    pub(crate) fn get(&self, text: Text) -> &str {
        &self.all[text.from as usize..][..text.len as usize]
    }

    /// Takes a text back.
    pub(crate) fn remove(&mut self, text: Text) {
        self.waste += text.len as usize;
    }

    /// Moves the texts together, where there is more waste than text; `held` are all that somebody has.
    pub(crate) fn tidy<'t>(&mut self, held: impl Iterator<Item = &'t mut Text>) {
        if self.waste < LITTLE || self.waste < self.all.len() / 2 {
            return;
        }
        let before = std::mem::take(self);
        self.all.reserve_exact(before.all.len() - before.waste);
        for text in held {
            *text = self.insert(before.get(*text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_any_more_goes_and_the_rest_stays() {
        let mut texts = Texts::default();
        let mut held: Vec<Text> = Vec::new();
        for n in 0..100_000 {
            held.push(texts.insert(&format!("text-{n}")));
            if held.len() > 10 {
                texts.remove(held.remove(0));
                texts.tidy(held.iter_mut());
            }
            assert!(texts.all.len() < 2 * LITTLE + 200);
        }
        let left: Vec<&str> = held.iter().map(|text| texts.get(*text)).collect();
        assert_eq!((left[0], left[9]), ("text-99990", "text-99999"));
    }
}
