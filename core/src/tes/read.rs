//! A client's JSON to a task, forgiving what real clients send.
//!
//! Nulls and unknown fields vanish, numbers and booleans may come as strings, some names may
//! come in camel case. What is then still of a wrong type is collected, all of it. So are unknown
//! fields that look like a slip: they are no breach, but nobody would see why they do nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::rejection::{Faults, Place, Rejection};
use super::{Executor, FileType, Input, Output, Resources, Task};
use crate::config::nearest;

/// A document as far as it could be read. Where something is wrong, `faults` says so and the
/// task holds an empty value.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) task: Task,
    /// The client's index of each element that is left in the task's lists.
    pub(super) indices: Indices,
    pub(super) faults: Faults,
    pub(super) slips: Vec<Slip>,
}

/// An unknown member that has nearly the name of one that is absent.
#[derive(Debug)]
pub(super) struct Slip {
    /// Its name.
    pub(super) key: String,
    /// The field that is probably meant.
    pub(super) meant: String,
    /// What to say of it in a task that is accepted.
    pub(super) warning: String,
}

/// Where the elements of a task's lists were before the nulls between them were dropped.
#[derive(Debug, Default)]
pub(super) struct Indices {
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<usize>,
    pub(super) executors: Vec<usize>,
    pub(super) volumes: Vec<usize>,
}

/// Names that older clients write in camel case; the first of each pair wins.
const ALIASES: [(&str, &str); 8] = [
    ("cpu_cores", "cpuCores"),
    ("ram_gb", "ramGb"),
    ("disk_gb", "diskGb"),
    ("workdir", "workDir"),
    ("ignore_error", "ignoreError"),
    ("path_prefix", "pathPrefix"),
    ("backend_parameters", "backendParameters"),
    ("backend_parameters_strict", "backendParametersStrict"),
];

/// Names that are meant for others, though no slip of the keyboard makes them the same.
const OTHER_NAMES: [(&str, &str); 7] = [
    ("cmd", "command"),
    ("cpu", "cpu_cores"),
    ("cpus", "cpu_cores"),
    ("disk", "disk_gb"),
    ("mem", "ram_gb"),
    ("memory", "ram_gb"),
    ("ram", "ram_gb"),
];

/// As many unknown members of a document are compared with what is known, which takes time.
const MOST_UNKNOWN: usize = 1_000;
/// One with a longer name is no slip.
const LONGEST_SLIP: usize = 40;

/// The most elements of a list or entries of an object. Each costs far more memory once it is
/// read than the few bytes that it can take in a document.
mod most {
    pub(super) const INPUTS: usize = 10_000;
    pub(super) const OUTPUTS: usize = 10_000;
    pub(super) const VOLUMES: usize = 10_000;
    pub(super) const EXECUTORS: usize = 1_000;
    pub(super) const ARGUMENTS: usize = 100_000;
    pub(super) const ENV: usize = 10_000;
    pub(super) const TAGS: usize = 1_000;
    pub(super) const ZONES: usize = 1_000;
    pub(super) const BACKEND_PARAMETERS: usize = 1_000;
    /// Brackets, braces, commas and colons of the whole document. An object with one member takes
    /// three, and 700 bytes.
    pub(super) const MARKS: usize = 300_000;
}

/// Reads a document. An error is one of syntax, where nesting beyond 128 levels counts as
/// such, or one of a document of too many parts.
pub(super) fn read(body: &[u8]) -> Result<Draft, Rejection> {
    // RFC 8259, section 8.1: a reader may ignore a byte order mark.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.trim_ascii().is_empty() {
        return Err(Rejection::Syntax(
            "a task in JSON is needed, but the body is empty".into(),
        ));
    }
    if has_too_many_parts(body) {
        let mut faults = Faults::default();
        let msg = format!(
            "must have at most {} brackets, braces, commas and colons",
            most::MARKS
        );
        faults.add(Place::Task, msg);
        faults.into_result()?;
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|e| Rejection::Syntax(format!("the body is not valid JSON: {e}")))?;
    let mut reader = Reader::default();
    let task = reader.task(value);
    Ok(Draft {
        task: task.unwrap_or_default(),
        indices: reader.indices,
        faults: reader.faults,
        slips: reader.slips,
    })
}

/// Whether the JSON would be a tree too large for memory: told from its text, before there is
/// a tree. What is not JSON may give any answer.
fn has_too_many_parts(body: &[u8]) -> bool {
    if body.len() <= most::MARKS {
        return false;
    }
    let mut marks = 0;
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => loop {
                match bytes.next() {
                    Some(b'\\') => _ = bytes.next(),
                    Some(b'"') | None => break,
                    Some(_) => {}
                }
            },
            b'[' | b'{' | b',' | b':' => marks += 1,
            _ => {}
        }
    }
    marks > most::MARKS
}

#[derive(Debug, Default)]
struct Reader {
    indices: Indices,
    faults: Faults,
    slips: Vec<Slip>,
    /// How many unknown members there were, up to [`MOST_UNKNOWN`].
    unknown: usize,
}

/// The members of an object that are not null, each taken out as it is read.
struct Members<'a> {
    object: Map<String, Value>,
    at: Place<'a>,
    /// Those that were asked for and are not there.
    absent: Vec<&'static str>,
}

impl Members<'_> {
    fn read<T>(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        read: impl FnOnce(&mut Reader, Value, Place<'_>) -> Option<T>,
    ) -> Option<T> {
        let value = self.object.remove(name).filter(|v| !v.is_null());
        if value.is_none() {
            self.absent.push(name);
        }
        read(reader, value?, self.at.member(name))
    }

    /// A member that must be there; without it the breach is noted.
    fn required<T: Default>(
        &mut self,
        reader: &mut Reader,
        name: &'static str,
        read: impl FnOnce(&mut Reader, Value, Place<'_>) -> Option<T>,
    ) -> T {
        if self.object.get(name).is_none_or(Value::is_null) {
            reader.faults.add(self.at.member(name), "missing");
        }
        self.read(reader, name, read).unwrap_or_default()
    }

    /// Notes which of those that nobody asked for are slips. The others are the client's own.
    fn end(self, reader: &mut Reader) {
        for (key, value) in self.object {
            if value.is_null() || reader.unknown == MOST_UNKNOWN {
                continue;
            }
            reader.unknown += 1;
            let Some(name) = meant(&key, &self.absent) else {
                continue;
            };
            let field = self.at.member(&key);
            reader.slips.push(Slip {
                warning: format!(
                    "{field} is not a key of TES 1.1, and ignored; did you mean `{name}`?"
                ),
                meant: self.at.member(name).to_string(),
                key,
            });
        }
    }
}

/// The name among `absent` that `key` is nearly, or another word for.
fn meant(key: &str, absent: &[&'static str]) -> Option<&'static str> {
    if key.len() > LONGEST_SLIP || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let key = key.to_ascii_lowercase();
    OTHER_NAMES
        .iter()
        .find(|(other, name)| *other == key && absent.contains(name))
        .map(|(_, name)| *name)
        .or_else(|| nearest(&key, absent.iter().copied()))
}

impl Reader {
    fn task(&mut self, value: Value) -> Option<Task> {
        let mut task = self.members(value, Place::Task)?;
        let (inputs, inputs_at) = split(task.read(self, "inputs", |r, v, at| {
            r.list(v, at, most::INPUTS, Reader::input)
        }));
        let (outputs, outputs_at) = split(task.read(self, "outputs", |r, v, at| {
            r.list(v, at, most::OUTPUTS, Reader::output)
        }));
        let (executors, executors_at) = split(task.read(self, "executors", |r, v, at| {
            r.list(v, at, most::EXECUTORS, Reader::executor)
        }));
        let (volumes, volumes_at) = split(task.read(self, "volumes", |r, v, at| {
            r.list(v, at, most::VOLUMES, Reader::text)
        }));
        self.indices = Indices {
            inputs: inputs_at,
            outputs: outputs_at,
            executors: executors_at,
            volumes: volumes_at,
        };
        let read = Task {
            name: task.read(self, "name", Reader::text),
            description: task.read(self, "description", Reader::text),
            inputs,
            outputs,
            resources: task.read(self, "resources", Reader::resources),
            executors: executors.unwrap_or_default(),
            volumes,
            tags: task.read(self, "tags", |r, v, at| r.words_by_name(v, at, most::TAGS)),
        };
        task.end(self);
        Some(read)
    }

    fn input(&mut self, value: Value, at: Place<'_>) -> Option<Input> {
        let mut input = self.members(value, at)?;
        let content = input.read(self, "content", Reader::content);
        let url = if content.as_ref().is_some_and(|c| !c.is_empty()) {
            // The content wins; whatever the url is, it must not matter.
            match input.object.remove("url") {
                Some(Value::String(url)) if !url.is_empty() && !url.contains('\0') => Some(url),
                _ => None,
            }
        } else {
            input.read(self, "url", Reader::text_or_nothing)
        };
        let read = Input {
            name: input.read(self, "name", Reader::text),
            description: input.read(self, "description", Reader::text),
            url,
            path: input.required(self, "path", Reader::text),
            kind: input.read(self, "type", Reader::kind).unwrap_or_default(),
            content,
            streamable: input.read(self, "streamable", Reader::boolean),
        };
        input.end(self);
        Some(read)
    }

    fn output(&mut self, value: Value, at: Place<'_>) -> Option<Output> {
        let mut output = self.members(value, at)?;
        let read = Output {
            name: output.read(self, "name", Reader::text),
            description: output.read(self, "description", Reader::text),
            url: output.required(self, "url", Reader::text),
            path: output.required(self, "path", Reader::text),
            path_prefix: output.read(self, "path_prefix", Reader::text_or_nothing),
            kind: output.read(self, "type", Reader::kind).unwrap_or_default(),
        };
        output.end(self);
        Some(read)
    }

    fn executor(&mut self, value: Value, at: Place<'_>) -> Option<Executor> {
        let mut executor = self.members(value, at)?;
        let read = Executor {
            image: executor.required(self, "image", Reader::text),
            command: executor.required(self, "command", Reader::command),
            workdir: executor.read(self, "workdir", Reader::text_or_nothing),
            stdin: executor.read(self, "stdin", Reader::text_or_nothing),
            stdout: executor.read(self, "stdout", Reader::text_or_nothing),
            stderr: executor.read(self, "stderr", Reader::text_or_nothing),
            env: executor.read(self, "env", |r, v, at| r.words_by_name(v, at, most::ENV)),
            ignore_error: executor.read(self, "ignore_error", Reader::boolean),
        };
        executor.end(self);
        Some(read)
    }

    fn resources(&mut self, value: Value, at: Place<'_>) -> Option<Resources> {
        let mut resources = self.members(value, at)?;
        let read = Resources {
            cpu_cores: resources.read(self, "cpu_cores", Reader::integer),
            preemptible: resources.read(self, "preemptible", Reader::boolean),
            ram_gb: resources.read(self, "ram_gb", Reader::number),
            disk_gb: resources.read(self, "disk_gb", Reader::number),
            zones: resources.read(self, "zones", |r, v, at| match v {
                Value::String(_) => r.text(v, at).map(|zone| vec![zone]),
                v => r
                    .list(v, at, most::ZONES, Reader::text)
                    .map(|zones| split(Some(zones)).0.unwrap_or_default()),
            }),
            backend_parameters: resources.read(self, "backend_parameters", |r, v, at| {
                r.words_by_name(v, at, most::BACKEND_PARAMETERS)
            }),
            backend_parameters_strict: resources.read(
                self,
                "backend_parameters_strict",
                Reader::boolean,
            ),
        };
        resources.end(self);
        Some(read)
    }

    fn members<'a>(&mut self, value: Value, at: Place<'a>) -> Option<Members<'a>> {
        let Value::Object(mut object) = value else {
            return self.wrong(at, "an object", &value);
        };
        for (name, alias) in ALIASES {
            if let Some(value) = object.remove(alias)
                && object.get(name).is_none_or(Value::is_null)
            {
                object.insert(name.into(), value);
            }
        }
        Some(Members {
            object,
            at,
            absent: Vec::new(),
        })
    }

    /// The elements that are not null and could be read, each with the client's index. Of a
    /// list with more than `most` none is read.
    fn list<T>(
        &mut self,
        value: Value,
        at: Place<'_>,
        most: usize,
        mut read: impl FnMut(&mut Self, Value, Place<'_>) -> Option<T>,
    ) -> Option<Vec<(usize, T)>> {
        let Value::Array(elements) = value else {
            return self.wrong(at, "a list", &value);
        };
        self.count(elements.len(), most, at)?;
        let present = elements
            .into_iter()
            .enumerate()
            .filter(|(_, v)| !v.is_null());
        Some(
            present
                .filter_map(|(index, v)| Some((index, read(self, v, at.item(index))?)))
                .collect(),
        )
    }

    fn command(&mut self, value: Value, at: Place<'_>) -> Option<Vec<String>> {
        let Value::Array(words) = value else {
            return self.wrong(at, "a list", &value);
        };
        self.count(words.len(), most::ARGUMENTS, at)?;
        // A dropped null would make it another command, so here it is a breach. A word that
        // cannot be read leaves an empty one: the task is refused anyway.
        let words = words.into_iter().enumerate();
        Some(
            words
                .map(|(index, v)| self.word(v, at.item(index)).unwrap_or_default())
                .collect(),
        )
    }

    fn words_by_name(
        &mut self,
        value: Value,
        at: Place<'_>,
        most: usize,
    ) -> Option<BTreeMap<String, String>> {
        let Value::Object(object) = value else {
            return self.wrong(at, "an object", &value);
        };
        self.count(object.len(), most, at)?;
        let mut words = BTreeMap::new();
        for (name, value) in object {
            if name.contains('\0') {
                self.faults.add(at, "a key contains a NUL character");
            } else if !value.is_null()
                && let Some(word) = self.word(value, at.member(&name))
            {
                words.insert(name, word);
            }
        }
        Some(words)
    }

    fn content(&mut self, value: Value, at: Place<'_>) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            other => self.wrong(at, "a string", &other),
        }
    }

    fn text(&mut self, value: Value, at: Place<'_>) -> Option<String> {
        let text = self.content(value, at)?;
        if text.contains('\0') {
            self.faults.add(at, "contains a NUL character");
            return None;
        }
        Some(text)
    }

    fn text_or_nothing(&mut self, value: Value, at: Place<'_>) -> Option<String> {
        self.text(value, at).filter(|text| !text.is_empty())
    }

    /// A string, or what clients write without quotes where a string is due.
    fn word(&mut self, value: Value, at: Place<'_>) -> Option<String> {
        match value {
            Value::Bool(b) => Some(b.to_string()),
            Value::Number(n) if !n.is_f64() => Some(n.to_string()),
            other => self.text(other, at),
        }
    }

    fn kind(&mut self, value: Value, at: Place<'_>) -> Option<FileType> {
        let word = self.text_or_nothing(value, at)?;
        if word.eq_ignore_ascii_case("FILE") {
            Some(FileType::File)
        } else if word.eq_ignore_ascii_case("DIRECTORY") {
            Some(FileType::Directory)
        } else {
            self.faults.add(at, "must be FILE or DIRECTORY");
            None
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "all readers are alike")]
    fn boolean(&mut self, value: Value, at: Place<'_>) -> Option<bool> {
        match &value {
            Value::Bool(b) => Some(*b),
            Value::String(s) if s.eq_ignore_ascii_case("true") => Some(true),
            Value::String(s) if s.eq_ignore_ascii_case("false") => Some(false),
            other => self.wrong(at, "true or false", other),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "all readers are alike")]
    fn number(&mut self, value: Value, at: Place<'_>) -> Option<f64> {
        let number = match &value {
            Value::Number(n) => n.as_f64(),
            Value::String(s) => s.parse().ok(),
            _ => None,
        };
        match number {
            Some(n) if f64::is_finite(n) => Some(n),
            _ => self.wrong(at, "a number", &value),
        }
    }

    fn integer(&mut self, value: Value, at: Place<'_>) -> Option<i32> {
        let number = self.number(value, at)?;
        if number.fract() != 0.0 {
            self.faults.add(at, "must be an integer");
            None
        } else if number.abs() > f64::from(i32::MAX) {
            self.faults.add(at, format!("must be at most {}", i32::MAX));
            None
        } else {
            Some(number as i32)
        }
    }

    /// Notes it if there are more than `most`.
    fn count(&mut self, found: usize, most: usize, at: Place<'_>) -> Option<()> {
        if found <= most {
            return Some(());
        }
        let msg = format!("must have at most {most} elements, not {found}");
        self.faults.add(at, msg);
        None
    }

    /// Notes that `value` should have been `wanted`.
    fn wrong<T>(&mut self, at: Place<'_>, wanted: &str, value: &Value) -> Option<T> {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.faults
            .add(at, format!("must be {wanted}, not {found}"));
        None
    }
}

/// A list and the client's index of each of its elements.
fn split<T>(list: Option<Vec<(usize, T)>>) -> (Option<Vec<T>>, Vec<usize>) {
    let Some(list) = list else {
        return (None, Vec::new());
    };
    let (indices, elements) = list.into_iter().unzip();
    (Some(elements), indices)
}
