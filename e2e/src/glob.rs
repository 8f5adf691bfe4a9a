//! `*` and `?`, over whole names.

/// Whether `pattern` matches all of `text`: `*` stands for any characters (none, too), `?` for exactly one.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it takes so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, met) in [
            ("*", "", true),
            ("*", "shop/web-0", true),
            ("shop/*", "shop/web-0", true),
            ("shop/*", "shopping/web-0", false),
            ("*/web-?", "shop/web-0", true),
            ("*/web-?", "shop/web-10", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("shop/web-0", "shop/web-0", true),
            ("shop/web", "shop/web-0", false),
        ] {
            assert_eq!(matches(pattern, text), met, "{pattern} on {text}");
        }
    }
}
