//! Columns of lines that come one by one: as wide as what has come so far.

/// Wider than this no column makes itself.
const WIDEST: usize = 48;

/// The widths of the columns so far.
#[derive(Debug, Default)]
pub(crate) struct Columns(Vec<usize>);

impl Columns {
    /// One line of these words; the last is not padded. What `paint` does to a column's word has no width.
    pub(crate) fn line(&mut self, words: &[String], paint: impl Fn(usize, &str) -> String) -> String {
        self.0.resize(self.0.len().max(words.len()), 0);
        let mut line = String::new();
        for (index, word) in words.iter().enumerate() {
            let width = word.chars().count();
            let column = &mut self.0[index];
            *column = (*column).max(width.min(WIDEST));
            line += &paint(index, word);
            if index + 1 < words.len() && *column > 0 {
                line.extend(std::iter::repeat_n(' ', column.saturating_sub(width) + 2));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_grow_and_stay() {
        let mut columns = Columns::default();
        let mut line = |words: [&str; 3]| {
            let words = words.map(str::to_owned);
            columns.line(&words, |index, word| if index == 1 { format!("<{word}>") } else { word.to_owned() })
        };
        assert_eq!(line(["a", "", "end"]), "a  <>end");
        assert_eq!(line(["long", "x", "end"]), "long  <x>  end");
        assert_eq!(line(["b", "", ""]), "b     <>");
        assert_eq!(line(["→", "y", "end"]), "→     <y>  end");
    }
}
