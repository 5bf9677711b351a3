//! Rust source as tidy sees it: words, and code without comments and literals.

/// Blanks comments, strings and characters of Rust source; lines and columns stay.
pub(crate) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after_word = code.ends_with(in_word);
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            '\'' => character(rest).unwrap_or(0),
            'r' | 'b' | 'c' if !after_word => prefixed_string(rest).unwrap_or(0),
            _ => 0,
        };
        let (blanked, kept) = if length > 0 { (length, 0) } else { (0, first.len_utf8()) };
        code.extend(rest[..blanked].chars().map(|c| if c == '\n' { c } else { ' ' }));
        code.push_str(&rest[..kept]);
        rest = &rest[blanked + kept..];
    }
    code
}

/// Returns what stands before the first test module.
pub(crate) fn before_tests(code: &str) -> &str {
    code.match_indices("#[cfg(")
        .find(|(at, _)| {
            let (attribute, after) = code[*at..].split_once(")]").unwrap_or((&code[*at..], ""));
            words(attribute).any(|word| word == "test") && after.trim_start().starts_with("mod ")
        })
        .map_or(code, |(at, _)| &code[..at])
}

/// Tells whether a word may contain it.
pub(crate) fn in_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Splits into words.
pub(crate) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character| !in_word(character))
}

/// Tells whether `line` holds `word` with no other word glued to it.
pub(crate) fn holds_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(in_word) && !line[at + word.len()..].starts_with(in_word)
    })
}

/// Length of the block comment, with those inside it, that `rest` begins with.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let (step, change) = match rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (2, 1),
            [b'*', b'/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of the string literal that `rest` begins with.
fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of a literal such as `r#"..."#`, `b"..."`, `br"..."` or `c"..."`.
fn prefixed_string(rest: &str) -> Option<usize> {
    let prefix = rest.find(|character| !"rbc".contains(character)).filter(|length| *length <= 2)?;
    let quoted = rest[prefix..].trim_start_matches('#');
    let hashes = rest.len() - prefix - quoted.len();
    if !quoted.starts_with('"') {
        return None;
    }
    if !rest[..prefix].contains('r') {
        return (hashes == 0).then(|| prefix + string(quoted));
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let inside = quoted[1..].find(&end).map_or(quoted.len(), |at| 1 + at + end.len());
    Some(prefix + hashes + inside)
}

/// Length of the character literal that `rest` begins with, unless that is a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inside = &rest[1..];
    if inside.starts_with('\\') {
        let end = inside.get(2..)?.find('\'')?;
        return Some(1 + 2 + end + 1);
    }
    let length = inside.chars().next()?.len_utf8();
    inside[length..].starts_with('\'').then_some(1 + length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let blank = |source: &str| {
            let code = code_of(source);
            assert_eq!(code.chars().count(), source.chars().count(), "{source}");
            code.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(blank("a // unsafe\nb"), "a b");
        assert_eq!(blank("a /* x /* unsafe */ é */ b"), "a b");
        assert_eq!(blank(r#"a "un\"safe" b"#), "a b");
        assert_eq!(blank("a r#\"un\"safe\"# b br\"\\\" c\"x\" d"), "a b d");
        assert_eq!(blank(r"f::<'a>('\'', '\u{1F}', '(', b'x')"), "f::<'a>( , , , b )");
        assert_eq!(blank("r#type for_r crab"), "r#type for_r crab");
    }

    #[test]
    fn words_and_test_modules_are_told_apart() {
        assert!(holds_word("// AB: later", "AB") && !holds_word("ABC", "AB"));
        assert_eq!(before_tests("a\n#[cfg(all(test, not(loom)))]\nmod tests {}"), "a\n");
        assert_eq!(before_tests("a\n#[cfg(test)]\nuse b;"), "a\n#[cfg(test)]\nuse b;");
    }
}
