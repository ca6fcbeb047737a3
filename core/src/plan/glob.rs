//! POSIX patterns (XCU 2.13), as `outputs[].path` may hold them.
//!
//! `*`, `?`, `[...]` with ranges, classes and negation by `!`; a backslash quotes what follows
//! it, in brackets too. Brackets are read within one component of the path, and an unclosed
//! one is literal. A slash matches only itself, and a leading `.` of a component only a literal
//! `.`. Everything is compared byte by byte, as in the C locale: `?` is one byte, and names need
//! not be UTF-8. There are no extensions: `**` is `*`, and braces and `^` are literal.
//!
//! Compiling a pattern takes linear time, matching one at most the product of the lengths of
//! pattern and name; no pattern makes either explode.

use std::fmt;

/// What is wrong with a pattern that [hides dots](Pattern::hides_dots).
pub(crate) const HIDDEN_DOTS: &str = "must not contain a quoted . or .. component";

/// A pattern for absolute paths, by components.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The components before the first one with a wildcard, unquoted.
    directory: Vec<String>,
    /// That one and all that follow.
    rest: Vec<Component>,
}

/// A pattern for one component of a path.
#[derive(Clone, PartialEq, Eq)]
pub struct Component {
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    AnyByte,
    AnyRun,
    OneOf(Set),
}

impl Pattern {
    /// Compiles `pattern`. Every text is a pattern; empty components are dropped.
    pub fn new(pattern: &str) -> Self {
        let mut directory = Vec::new();
        let mut rest = Vec::new();
        for text in pattern.split('/').filter(|text| !text.is_empty()) {
            let component = Component::new(text);
            match component.literal() {
                Some(name) if name.is_empty() => {}
                Some(name) if rest.is_empty() => directory.push(name),
                _ => rest.push(component),
            }
        }
        Self { directory, rest }
    }

    /// The path that this pattern is, quoting removed, if it has no wildcard.
    pub fn literal(&self) -> Option<String> {
        self.rest.is_empty().then(|| self.directory())
    }

    /// The directory below which all matches lie: the components before the first wildcard,
    /// quoting removed. Not normalised: a quoted `.` shows.
    pub fn directory(&self) -> String {
        format!("/{}", self.directory.join("/"))
    }

    /// The patterns of the components below [`Pattern::directory`], in order. To find all
    /// matches, list the directory, keep the names that match the first, go on in those that
    /// are directories; where [`Component::literal`] is known, nothing need be listed.
    pub fn components(&self) -> &[Component] {
        &self.rest
    }

    /// Whether a component is `.` or `..`: in a path in its one form only quoting can hide one.
    pub fn hides_dots(&self) -> bool {
        let mut directory = self.directory.iter();
        directory.any(|name| name == "." || name == "..")
            || self.rest.iter().any(Component::is_dots)
    }

    /// The text before the first wildcard, quoting removed.
    pub fn literal_start(&self) -> String {
        let mut start = self.directory();
        if let Some(component) = self.rest.first() {
            if !start.ends_with('/') {
                start.push('/');
            }
            start.push_str(&component.literal_start());
        }
        start
    }

    /// Whether the whole of the absolute path matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        let mut names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
        self.directory
            .iter()
            .all(|literal| names.next() == Some(literal.as_bytes()))
            && self
                .rest
                .iter()
                .all(|component| names.next().is_some_and(|name| component.matches(name)))
            && names.next().is_none()
    }
}

impl Component {
    /// Compiles a pattern without slashes. A backslash at its end quotes nothing and is dropped.
    pub fn new(pattern: &str) -> Self {
        let pattern = pattern.as_bytes();
        let ends = Brackets::new(pattern);
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut at = 0;
        while let Some(&byte) = pattern.get(at) {
            at += 1;
            match byte {
                b'*' if tokens.last() == Some(&Token::AnyRun) => {}
                b'*' => tokens.push(Token::AnyRun),
                b'?' => tokens.push(Token::AnyByte),
                b'[' => match ends.end(at) {
                    Some(end) => {
                        tokens.push(Token::OneOf(Set::new(&pattern[at..end])));
                        at = end + 1;
                    }
                    None => tokens.push(Token::Byte(byte)),
                },
                b'\\' => {
                    tokens.extend(pattern.get(at).map(|quoted| Token::Byte(*quoted)));
                    at += 1;
                }
                _ => tokens.push(Token::Byte(byte)),
            }
        }
        Self { tokens }
    }

    /// The name that this pattern is, quoting removed, if it has no wildcard.
    pub fn literal(&self) -> Option<String> {
        let literal = |token: &Token| matches!(token, Token::Byte(_));
        self.tokens
            .iter()
            .all(literal)
            .then(|| self.literal_start())
    }

    /// Whether this is `.` or `..`, which quoting can hide.
    pub fn is_dots(&self) -> bool {
        self.tokens.len() <= 2 && self.tokens.iter().all(|t| *t == Token::Byte(b'.'))
    }

    fn literal_start(&self) -> String {
        let bytes = self.tokens.iter().map_while(|token| match token {
            Token::Byte(byte) => Some(*byte),
            _ => None,
        });
        // Quoting and wildcards are ASCII, so characters stay whole.
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    }

    /// Whether the whole name matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        if name.first() == Some(&b'.') && self.tokens.first() != Some(&Token::Byte(b'.')) {
            return false;
        }
        let (mut token, mut byte) = (0, 0);
        // Where to go on if a try fails: the last `*` takes one byte more. Earlier ones need
        // never be tried again.
        let mut retry = None;
        while byte < name.len() || token < self.tokens.len() {
            match self.tokens.get(token) {
                Some(Token::AnyRun) => {
                    retry = Some((token, byte + 1));
                    token += 1;
                }
                Some(one) if name.get(byte).is_some_and(|b| one.matches(*b)) => {
                    token += 1;
                    byte += 1;
                }
                _ => match retry {
                    Some((star, next)) if next <= name.len() => {
                        token = star;
                        byte = next;
                    }
                    _ => return false,
                },
            }
        }
        true
    }
}

impl Token {
    /// Whether this takes the one byte.
    fn matches(self, byte: u8) -> bool {
        match self {
            Self::Byte(literal) => literal == byte,
            Self::AnyByte => true,
            Self::AnyRun => false,
            Self::OneOf(set) => set.contains(byte),
        }
    }
}

/// Where the bracket expressions of a component end.
struct Brackets<'a> {
    pattern: &'a [u8],
    /// For each position in a bracket expression: where its closing bracket is.
    ends: Vec<Option<usize>>,
}

impl<'a> Brackets<'a> {
    fn new(pattern: &'a [u8]) -> Self {
        let mut ends = Vec::new();
        if pattern.contains(&b'[') {
            // From the right, so that it takes linear time however many brackets are unclosed.
            ends = vec![None; pattern.len() + 1];
            for at in (0..pattern.len()).rev() {
                ends[at] = if pattern[at] == b']' {
                    Some(at)
                } else {
                    ends[at + Element::read(&pattern[at..]).1]
                };
            }
        }
        Self { pattern, ends }
    }

    /// Where the expression that was opened right before `start` is closed.
    fn end(&self, start: usize) -> Option<usize> {
        let first = start + usize::from(self.pattern.get(start) == Some(&b'!'));
        let is_literal = self.pattern.get(first) == Some(&b']');
        *self.ends.get(first + usize::from(is_literal))?
    }
}

/// A part of a bracket expression.
enum Element<'a> {
    Byte(u8),
    Class(&'a [u8]),
    /// A collating element that the C locale does not have.
    Nothing,
}

impl<'a> Element<'a> {
    /// The longest name of a class or collating element.
    const LONGEST_NAME: usize = 32;

    /// The element at the beginning of `text`, which is not empty, and its length.
    fn read(text: &'a [u8]) -> (Self, usize) {
        match *text {
            [b'\\', quoted, ..] => (Self::Byte(quoted), 2),
            [b'[', kind @ (b'.' | b'=' | b':'), ref rest @ ..] => {
                let close = [kind, b']'];
                let mut ends = rest.windows(2).take(Self::LONGEST_NAME);
                match (ends.position(|w| w == close), kind) {
                    (None, _) => (Self::Byte(b'['), 1),
                    (Some(length), b':') => (Self::Class(&rest[..length]), length + 4),
                    (Some(1), _) => (Self::Byte(rest[0]), 5),
                    (Some(length), _) => (Self::Nothing, length + 4),
                }
            }
            _ => (Self::Byte(text[0]), 1),
        }
    }
}

/// A set of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Set([u128; 2]);

impl Set {
    /// Reads what is between the brackets.
    fn new(mut text: &[u8]) -> Self {
        let mut set = Self([0; 2]);
        let negated = text.first() == Some(&b'!');
        text = &text[usize::from(negated)..];
        while !text.is_empty() {
            let (element, length) = Element::read(text);
            text = &text[length..];
            match (element, text) {
                (Element::Byte(low), [b'-', rest @ ..]) if !rest.is_empty() => {
                    let (high, length) = Element::read(rest);
                    text = &rest[length..];
                    if let Element::Byte(high) = high {
                        (low..=high).for_each(|byte| set.insert(byte));
                    }
                }
                (Element::Byte(byte), _) => set.insert(byte),
                (Element::Class(name), _) => (0..128)
                    .filter(|byte| in_class(name, *byte))
                    .for_each(|byte| set.insert(byte)),
                (Element::Nothing, _) => {}
            }
        }
        if negated {
            set.0 = set.0.map(|half| !half);
        }
        set
    }

    fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 7)] |= 1 << (byte & 127);
    }

    fn contains(self, byte: u8) -> bool {
        self.0[usize::from(byte >> 7)] >> (byte & 127) & 1 == 1
    }
}

/// The classes of the C locale; an unknown one has no members.
fn in_class(name: &[u8], byte: u8) -> bool {
    match name {
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"alpha" => byte.is_ascii_alphabetic(),
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"cntrl" => byte.is_ascii_control(),
        b"digit" => byte.is_ascii_digit(),
        b"graph" => byte.is_ascii_graphic(),
        b"lower" => byte.is_ascii_lowercase(),
        b"print" => byte.is_ascii_graphic() || byte == b' ',
        b"punct" => byte.is_ascii_punctuation(),
        b"space" => matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => byte.is_ascii_uppercase(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => false,
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(&self.directory)
            .entries(&self.rest)
            .finish()
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for token in &self.tokens {
            match token {
                Token::Byte(byte) => write!(f, "{}", byte.escape_ascii())?,
                Token::AnyByte => f.write_str("?")?,
                Token::AnyRun => f.write_str("*")?,
                Token::OneOf(_) => f.write_str("[…]")?,
            }
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests;
