//! What strangers say, fit to be shown: in logs, on terminals, in objects.
//!
//! A text of a token that nobody has confirmed, or of an agent that is not itself any more, could otherwise end a line and begin
//! another in our name, move a terminal's cursor, or be as long as a message may be.

/// Most of a name, in characters.
pub(crate) const NAME: usize = 253;

/// Most of a sentence.
pub(crate) const SENTENCE: usize = 1024;

/// So many of the text's characters at most, each of which shows itself.
pub(crate) fn said(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (number, letter) in text.chars().enumerate() {
        match letter {
            _ if number == most => {
                shown.push('…');
                break;
            }
            '\n' | '\r' | '\t' => shown.push(' '),
            _ if is_hidden(letter) => shown.extend(letter.escape_unicode()),
            _ => shown.push(letter),
        }
    }
    shown
}

/// Whether it does something to what stands beside it: ends the line, or turns its direction round.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_one_line_and_short() {
        assert_eq!(said("no route to 10.0.0.1: größer", SENTENCE), "no route to 10.0.0.1: größer");
        assert_eq!(said("one\ntwo\r\n\tthree", NAME), "one two   three");
        assert_eq!(said("\u{1b}[2Jgone\u{202e}", NAME), "\\u{1b}[2Jgone\\u{202e}");
        assert_eq!(said("\0\u{9b}\u{2028}", NAME), "\\u{0}\\u{9b}\\u{2028}");
        assert_eq!(said(&"x".repeat(300), NAME), "x".repeat(NAME) + "…");
        assert_eq!(said(&"x".repeat(NAME), NAME), "x".repeat(NAME));
    }
}
