use proptest::prelude::*;

use super::*;

fn matches(pattern: &str, name: &str) -> bool {
    Component::new(pattern).matches(name.as_bytes())
}

/// Pattern, names that match, names that do not; checked against `fnmatch(3)` of glibc in the
/// C locale with `FNM_PERIOD`, where POSIX leaves nothing open.
const TABLE: &[(&str, &[&str], &[&str])] = &[
    ("a", &["a"], &["", "b", "aa", "A"]),
    ("*", &["a", "a.b", "*"], &[".a", "."]),
    ("**", &["a", "ab"], &[".a"]),
    ("?", &["a", "*"], &["", "ab", "é", "."]),
    ("??", &["ab", "é"], &["a", ".a"]),
    (
        "a*b*c",
        &["abc", "axbxc", "abbcc", "aXbcbc"],
        &["ab", "abcd", "acb"],
    ),
    ("*.txt", &["a.txt", "a.b.txt"], &[".txt", "a.txt2", "txt"]),
    (".*", &[".", ".a", ".."], &["a"]),
    ("\\.a*", &[".a", ".ab"], &["a", "\\.a"]),
    ("[.]a", &[], &[".a", "a"]),
    ("[!x]a", &["ya"], &[".a", "xa"]),
    ("a[.]b", &["a.b"], &["axb"]),
    ("[abc]", &["a", "c"], &["d", "[abc]", ""]),
    ("[!abc]", &["d", "!"], &["a", ""]),
    ("[a-c]x", &["ax", "bx", "cx"], &["dx", "-x", "Bx"]),
    ("[a-]", &["a", "-"], &["b"]),
    ("[-a]", &["a", "-"], &["b"]),
    ("[!-a]", &["b"], &["a", "-"]),
    ("[c-a]", &[], &["a", "b", "c", "-"]),
    ("[]a]", &["]", "a"], &["[]a]", "b"]),
    ("[!]a]", &["b", "["], &["]", "a"]),
    ("[]-a]", &["]", "^", "a", "`"], &["b", "-"]),
    ("[a!]", &["a", "!"], &["b"]),
    ("[]", &["[]"], &["", "]", "["]),
    ("[!]", &["[!]"], &["!", "]"]),
    ("[a", &["[a"], &["a"]),
    ("a[", &["a["], &["a"]),
    ("[[:digit:]]", &["0", "9"], &["a", ":", "d", "["]),
    ("[![:digit:]]", &["a"], &["0"]),
    ("[[:alpha:]_-]*", &["a1", "_", "-x"], &["1a"]),
    ("[[:upper:][:digit:]]", &["A", "7"], &["a"]),
    ("[[:blank:]]", &[" ", "\t"], &["\n", "a"]),
    (
        "[[:space:]]",
        &[" ", "\t", "\n", "\u{b}", "\u{c}", "\r"],
        &["a"],
    ),
    ("[[:punct:]]", &["!", "~", "_"], &["a", " "]),
    ("[[:cntrl:]]", &["\u{1}", "\u{7f}"], &["a"]),
    ("[[:graph:]]", &["a", "!"], &[" ", "\t"]),
    ("[[:print:]]", &["a", " "], &["\t"]),
    ("[[:xdigit:]]", &["f", "A", "0"], &["g"]),
    ("[[:alnum:]]", &["z", "Z", "5"], &["_"]),
    ("[[:lower:]]", &["q"], &["Q"]),
    ("[[.-.]]", &["-"], &["."]),
    ("a[[.].]]", &["a]"], &["a."]),
    ("[[=a=]]", &["a"], &["="]),
    ("[[.a.]-c]", &["a", "b", "c"], &["d", "."]),
    ("[a-[.c.]]", &["a", "b", "c"], &["d", "["]),
    ("[[:digit:]", &["[:", "[d", "[t"], &["1", "a"]),
    ("[[]", &["["], &["]", "[["]),
    ("[a[]", &["a", "["], &["]"]),
    ("\\*", &["*"], &["a", "\\*", "\\"]),
    ("\\a\\?", &["a?"], &["ab"]),
    ("\\\\", &["\\"], &["\\\\", ""]),
    ("[\\]]", &["]"], &["\\", "[\\]]"]),
    ("[\\!a]", &["!", "a"], &["\\", "b"]),
    ("[a\\-c]", &["a", "-", "c"], &["b", "\\"]),
    ("\\[a]", &["[a]"], &["a"]),
    ("{a,b}", &["{a,b}"], &["a", "b"]),
    ("é*", &["é", "éa"], &["e", "ê"]),
    ("!a", &["!a"], &["a", "b"]),
    ("*a*a*a*b", &["aaab", "xaxaxaxb"], &["aaaa", "aab"]),
];

#[test]
fn patterns_match_as_posix_has_it() {
    for (pattern, yes, no) in TABLE {
        for name in *yes {
            assert!(matches(pattern, name), "{pattern} should match {name:?}");
        }
        for name in *no {
            assert!(!matches(pattern, name), "{pattern} must not match {name:?}");
        }
    }
}

#[test]
fn what_posix_leaves_open_is_literal_or_matches_nothing() {
    assert!(matches("[^a]", "a") && matches("[^a]", "^") && !matches("[^a]", "b"));
    assert!(matches("a\\", "a") && !matches("a\\", "a\\"));
    assert!(!matches("[[:vowel:]]", "a") && !matches("[[:vowel:]]", "["));
    assert!(matches("[[:vowel:]b]", "b"));
    assert!(!matches("[[.space.]]", " "));
}

#[test]
fn names_that_are_not_utf8_match_byte_by_byte() {
    assert!(Component::new("a?b").matches(b"a\xffb"));
    assert!(Component::new("[!a]*").matches(b"\xfe\xff"));
    assert!(!Component::new("é").matches(b"\xc3"));
}

#[test]
fn a_component_is_matched_on_its_own() {
    let matches = |pattern: &str, path: &str| Pattern::new(pattern).matches(path.as_bytes());
    assert!(matches("/a/*/c", "/a/b/c"));
    assert!(!matches("/a/*/c", "/a/b/b/c"));
    assert!(!matches("/a/**", "/a/b/c"));
    assert!(!matches("/a/*", "/a"));
    assert!(!matches("/a?b/x", "/a/b/x"));
    assert!(matches("/a/[b/c]", "/a/[b/c]"));
    assert!(!matches("/a/[b/c]d", "/a/bd"));
    assert!(matches("/a/.*/x", "/a/.b/x"));
    assert!(!matches("/a/*/x", "/a/.b/x"));
    assert!(matches("/a\\/b/*", "/a/b/c"));
}

#[test]
fn a_pattern_tells_its_literal_parts() {
    let pattern = Pattern::new("/work/o\\*t/a\\?b*c/[x]/y");
    assert_eq!(pattern.directory(), "/work/o*t");
    assert_eq!(pattern.literal_start(), "/work/o*t/a?b");
    assert_eq!(pattern.literal(), None);
    assert_eq!(pattern.components().len(), 3);
    assert_eq!(pattern.components()[0].literal(), None);
    assert_eq!(pattern.components()[2].literal().unwrap(), "y");
    assert_eq!(Pattern::new("/*").directory(), "/");
    assert_eq!(Pattern::new("/*").literal_start(), "/");
    assert_eq!(Pattern::new("/é\\é*").literal_start(), "/éé");
    assert_eq!(Pattern::new("/a\\*/b[/c").literal().unwrap(), "/a*/b[/c");
}

#[test]
fn hostile_patterns_take_no_time() {
    let start = std::time::Instant::now();
    let name = "a".repeat(255);
    assert!(!matches(&("*a".repeat(2000) + "b"), &name));
    assert!(!matches(&"[".repeat(1_000_000), &name));
    assert!(!matches(&"[[:".repeat(300_000), &name));
    assert!(!matches(&"[!".repeat(300_000), &name));
    assert!(!matches(&"[a-".repeat(300_000), &name));
    assert!(!matches(&"*[".repeat(300_000), &name));
    assert!(start.elapsed().as_secs() < 10);
}

/// A matcher too simple to be wrong in the same way: it tries everything.
fn naive(pattern: &[u8], name: &[u8], leading: bool) -> bool {
    let dot_is_hidden = leading && name.first() == Some(&b'.');
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] if dot_is_hidden => {
            let _ = rest;
            false
        }
        [b'*', rest @ ..] => (0..=name.len()).any(|taken| naive(rest, &name[taken..], false)),
        [b'?', rest @ ..] => !name.is_empty() && !dot_is_hidden && naive(rest, &name[1..], false),
        [b'\\'] => name.is_empty(),
        [b'\\', quoted, rest @ ..] => {
            name.first() == Some(quoted) && naive(rest, &name[1..], false)
        }
        [b'[', rest @ ..] => match naive_bracket(rest) {
            Some((negated, members, rest)) => {
                !name.is_empty()
                    && !dot_is_hidden
                    && members.contains(&name[0]) != negated
                    && naive(rest, &name[1..], false)
            }
            None => name.first() == Some(&b'[') && naive(rest, &name[1..], false),
        },
        [byte, rest @ ..] => name.first() == Some(byte) && naive(rest, &name[1..], false),
    }
}

/// Simple brackets only: members, ranges, quoting, `[:digit:]`.
fn naive_bracket(text: &[u8]) -> Option<(bool, Vec<u8>, &[u8])> {
    let negated = text.first() == Some(&b'!');
    let text = &text[usize::from(negated)..];
    let mut members = Vec::new();
    let mut at = 0;
    let byte = |at: &mut usize| {
        if text[*at] == b'\\' && *at + 1 < text.len() {
            *at += 1;
        }
        *at += 1;
        text[*at - 1]
    };
    while at < text.len() {
        if text[at] == b']' && at > 0 {
            return Some((negated, members, &text[at + 1..]));
        }
        if text[at..].starts_with(b"[:digit:]") {
            members.extend(b'0'..=b'9');
            at += 9;
            continue;
        }
        let low = byte(&mut at);
        if text.get(at) == Some(&b'-') && at + 1 < text.len() && text[at + 1] != b']' {
            at += 1;
            let high = byte(&mut at);
            members.extend(low..=high);
        } else {
            members.push(low);
        }
    }
    None
}

/// Short patterns and names of the few characters that mean something.
fn pattern() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            4 => proptest::sample::select(vec!["a", "b", "c", "*", "?", ".", "[", "]", "!", "-"]),
            1 => proptest::sample::select(vec!["\\", "[a", "[!a]", "[a-b]", "[[:digit:]]", "1"]),
        ],
        0..10,
    )
    .prop_map(|parts| parts.concat())
}

mod fuzz {
    use super::*;

    proptest! {
        #[test]
        fn matching_agrees_with_a_simple_matcher(pattern in pattern(), name in "[]abc.!1\\[\\\\-]{0,8}") {
            let mine = matches(&pattern, &name);
            prop_assert_eq!(mine, naive(pattern.as_bytes(), name.as_bytes(), true));
        }

        #[test]
        fn a_quoted_name_matches_itself_and_is_literal(name in "[^/\0]{1,12}") {
            let quoted: String = name.chars().flat_map(|c| ['\\', c]).collect();
            let component = Component::new(&quoted);
            prop_assert!(component.matches(name.as_bytes()));
            prop_assert_eq!(component.literal(), Some(name));
        }

        #[test]
        fn what_matches_begins_with_the_literal_start(
            pattern in pattern(), directory in pattern(), name in "[]abc.!1\\[\\\\-]{0,8}"
        ) {
            let pattern = Pattern::new(&format!("/{directory}/{pattern}"));
            for directory in [&directory, &name] {
                // Empty components count for nothing.
                let parts = [directory.as_str(), name.as_str()];
                let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                let path = format!("/{}", parts.join("/"));
                prop_assert!(
                    !pattern.matches(path.as_bytes()) || path.starts_with(&pattern.literal_start()),
                    "{:?} matches {}", pattern, path
                );
            }
        }

        #[test]
        fn a_path_without_wildcards_is_itself(path in "(/[^/*?\\[\\\\\0]{1,8}){1,4}") {
            let pattern = Pattern::new(&path);
            prop_assert_eq!(pattern.literal(), Some(path.clone()));
            prop_assert!(pattern.matches(path.as_bytes()));
        }

        #[test]
        fn any_text_is_a_pattern(pattern in any::<String>(), path in any::<Vec<u8>>()) {
            let pattern = Pattern::new(&pattern);
            let _ = (pattern.matches(&path), pattern.literal_start(), pattern.directory());
        }
    }
}
