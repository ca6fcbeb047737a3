//! The rules of the specification and of this server.
//!
//! Nothing here asks whether a file exists or whether credentials suffice: that is found out
//! when the task runs.

mod urls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::read::{self, Draft, Indices, Slip};
use super::rejection::{Faults, Place, shortened};
use super::secrets::{self, UrlSecrets};
use super::{Executor, FileType, Input, Output, Rejection, Resources, Task};
use crate::plan::glob::{HIDDEN_DOTS, Pattern};
use crate::plan::{Plan, PlanError, paths};

pub use urls::PrefixRule;

/// What this server allows, as far as validation goes.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// URL prefixes that are served, as configured; a url outside them is refused. For
    /// `file:` whole components are compared, `.` and `..` resolved.
    pub prefixes: Vec<PrefixRule>,
    /// The most CPU cores a task may ask for.
    pub max_cpu_cores: Option<u32>,
    /// The most memory, in GiB.
    pub max_ram_gb: Option<f64>,
    /// The most scratch space, in GiB.
    pub max_disk_gb: Option<f64>,
    /// Backend parameters that are known, in canonical spelling, each with a check of its
    /// value that answers what is wrong.
    pub backend_parameters: BTreeMap<String, ParameterCheck>,
}

/// Checks the value of a backend parameter; an error completes a sentence that begins with the
/// parameter's name: "must be a or b".
#[derive(Clone)]
pub struct ParameterCheck(Arc<OfValue>);

type OfValue = dyn Fn(&str) -> Result<(), String> + Send + Sync;

impl ParameterCheck {
    /// The check that `check` makes.
    pub fn new(check: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }
}

impl std::fmt::Debug for ParameterCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParameterCheck")
    }
}

/// A document that may be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The document, passwords in URLs masked as `***`.
    pub task: Task,
    /// The passwords.
    pub secrets: UrlSecrets,
    /// What was dropped or is odd, for the first system log.
    pub warnings: Vec<String>,
}

/// Reads and validates a client's document. What is wrong with it is reported all at once,
/// with the client's own indices; an accepted one has a [`Plan`].
///
/// What a document costs in memory is bounded, however it is written. At most it has
///
/// - 10,000 `inputs`, `outputs` and `volumes` each,
/// - 1,000 `executors`, each with 100,000 words in `command` and 10,000 entries in `env`,
/// - 1,000 `tags`, `zones` and `backend_parameters` each,
/// - 300,000 brackets, braces, commas and colons outside its strings.
pub fn accept(body: &[u8], rules: &Rules) -> Result<Accepted, Rejection> {
    let Draft {
        mut task,
        indices,
        faults,
        slips,
    } = read::read(body)?;
    let mut check = Check {
        rules,
        faults,
        secrets: UrlSecrets::default(),
        warnings: Warnings::default(),
    };
    check.task(&mut task, &indices);
    for Slip {
        key,
        meant,
        warning,
    } in slips
    {
        let hint = format!("; there is `{key}`, which is not a key of TES 1.1");
        check.faults.hint(&meant, &hint);
        check.warnings.push(warning);
    }
    check.faults.into_result()?;
    let mut faults = Faults::default();
    if let Err(PlanError { field, msg }) = Plan::new("", &task, &check.secrets) {
        faults.add(field, msg);
    }
    faults.into_result()?;
    Ok(Accepted {
        task,
        secrets: check.secrets,
        warnings: check.warnings.into_lines(),
    })
}

/// What was dropped or is odd: the first, and how many more there are.
#[derive(Debug, Default)]
struct Warnings {
    lines: Vec<String>,
    more: usize,
}

impl Warnings {
    /// As many are listed; a hostile document could have thousands.
    const MOST: usize = 20;

    fn push(&mut self, warning: String) {
        if self.lines.len() < Self::MOST {
            self.lines.push(warning);
        } else {
            self.more += 1;
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            let more = format!("{} more warnings are not listed", self.more);
            self.lines.push(more);
        }
        self.lines
    }
}

/// One pass over a document.
struct Check<'a> {
    rules: &'a Rules,
    faults: Faults,
    secrets: UrlSecrets,
    warnings: Warnings,
}

impl Check<'_> {
    fn task(&mut self, task: &mut Task, indices: &Indices) {
        let mut tree = Tree::default();
        let at = Place::Task.member("executors");
        if task.executors.is_empty() {
            self.faults.add(at, "at least one is needed");
        }
        for (executor, index) in task.executors.iter().zip(&indices.executors) {
            self.executor(executor, at.item(*index), &mut tree);
        }
        let at = Place::Task.member("inputs");
        let inputs = task.inputs.iter_mut().flatten().zip(&indices.inputs);
        for (stored, (input, index)) in inputs.enumerate() {
            self.input(input, at.item(*index), stored, &mut tree);
        }
        let at = Place::Task.member("outputs");
        let outputs = task.outputs.iter_mut().flatten().zip(&indices.outputs);
        for (stored, (output, index)) in outputs.enumerate() {
            self.output(output, at.item(*index), stored, &mut tree);
        }
        let at = Place::Task.member("volumes");
        for (volume, index) in task.volumes.iter().flatten().zip(&indices.volumes) {
            let at = at.item(*index);
            if let Some(path) = self.mounted_path(volume, at) {
                tree.directory(path, at);
            }
        }
        self.names(task.tags.as_ref(), Place::Task.member("tags"));
        if let Some(resources) = &mut task.resources {
            self.resources(resources, Place::Task.member("resources"));
        }
        tree.check(&mut self.faults, &mut self.warnings);
    }

    fn executor(&mut self, executor: &Executor, at: Place<'_>, tree: &mut Tree) {
        if executor.image.trim().is_empty() {
            self.faults.add(at.member("image"), "must not be empty");
        }
        match executor.command.first() {
            None => self.faults.add(at.member("command"), "must not be empty"),
            Some(program) if program.is_empty() => self
                .faults
                .add(at.member("command").item(0), "must not be empty"),
            Some(_) => {}
        }
        if let Some(workdir) = &executor.workdir {
            let at = at.member("workdir");
            if let Some(path) = self.path(workdir, at) {
                self.of_executor(&path, at);
                tree.directory(path, at);
            }
        }
        for (name, stream) in [
            ("stdin", &executor.stdin),
            ("stdout", &executor.stdout),
            ("stderr", &executor.stderr),
        ] {
            if let Some(stream) = stream {
                let at = at.member(name);
                if let Some(path) = self.path_below_root(stream, at) {
                    self.of_executor(&path, at);
                    tree.directory(paths::parent(&path).to_owned(), at);
                }
            }
        }
        let at = at.member("env");
        self.names(executor.env.as_ref(), at);
        for name in executor.env.iter().flat_map(BTreeMap::keys) {
            if name.contains('=') {
                self.faults
                    .add(at.member(name), "a variable's name must not contain =");
            }
        }
    }

    fn input(&mut self, input: &mut Input, at: Place<'_>, stored: usize, tree: &mut Tree) {
        let path_at = at.member("path");
        match (self.mounted_path(&input.path, path_at), input.kind) {
            (Some(path), FileType::File) => tree.file(path, path_at),
            (Some(path), FileType::Directory) => tree.directory(path, path_at),
            (None, _) => {}
        }
        let content = input.content.as_deref();
        if content.is_some_and(|content| !content.is_empty()) {
            if input.kind == FileType::Directory {
                let msg = "a DIRECTORY cannot have content";
                self.faults.add(at.member("content"), msg);
            }
            // Not used, but shown.
            if let Some(url) = &mut input.url {
                secrets::mask(url);
            }
            return;
        }
        let url_at = at.member("url");
        let Some(url) = &mut input.url else {
            if content.is_none() || input.kind == FileType::Directory {
                self.faults.add(url_at, "missing");
            }
            return;
        };
        if let Err(msg) = urls::check_input(url, input.kind, &self.rules.prefixes) {
            self.faults.add(url_at, msg);
        }
        if let Some(secret) = secrets::mask(url) {
            self.secrets
                .0
                .insert(format!("inputs[{stored}].url"), secret);
        }
    }

    fn output(&mut self, output: &mut Output, at: Place<'_>, stored: usize, tree: &mut Tree) {
        let path_at = at.member("path");
        let mut is_file = output.kind == FileType::File;
        if let Some(path) = self.path(&output.path, path_at) {
            let pattern = Pattern::new(&path);
            if let Some(path) = pattern.literal() {
                // What quoting hid shows only now.
                if let Some(path) = self.mounted_path(&path, path_at) {
                    tree.directory(paths::parent(&path).to_owned(), path_at);
                }
            } else {
                is_file = false;
                self.pattern(&pattern, path_at, tree);
                self.foreign_wildcards(&path, path_at);
                self.path_prefix(output, &pattern, at.member("path_prefix"));
            }
        }
        let url_at = at.member("url");
        if output.url.is_empty() {
            self.faults.add(url_at, "missing");
        } else if let Err(msg) = urls::check_output(&output.url, is_file, &self.rules.prefixes) {
            self.faults.add(url_at, msg);
        }
        if let Some(secret) = secrets::mask(&mut output.url) {
            self.secrets
                .0
                .insert(format!("outputs[{stored}].url"), secret);
        }
    }

    fn pattern(&mut self, pattern: &Pattern, at: Place<'_>, tree: &mut Tree) {
        if pattern.hides_dots() {
            self.faults.add(at, HIDDEN_DOTS);
            return;
        }
        if let Some(directory) = self.path(&pattern.directory(), at) {
            if let Some(msg) = paths::reserved(&directory) {
                self.faults.add(at, msg);
            }
            tree.directory(directory, at);
        }
    }

    /// Warns of wildcards that other patterns have and these have not: what they leave out is
    /// missed by nobody until it is needed.
    fn foreign_wildcards(&mut self, pattern: &str, at: Place<'_>) {
        let pattern = unquoted(pattern);
        if pattern.contains("**") {
            self.warnings.push(format!(
                "{at}: ** is read as *, which stays within one directory; an output of type \
                 DIRECTORY is delivered with all below it"
            ));
        }
        let opened = pattern.split('{').skip(1);
        let mut closed = opened.filter_map(|rest| rest.split_once('}'));
        if closed.any(|(inside, _)| inside.contains(',')) {
            self.warnings.push(format!(
                "{at}: {{…,…}} is read as it is written, not as a choice; make an output for \
                 each name that is meant"
            ));
        }
    }

    fn path_prefix(&mut self, output: &Output, pattern: &Pattern, at: Place<'_>) {
        match &output.path_prefix {
            None => self
                .faults
                .add(at, "missing: a path with wildcards needs it"),
            Some(prefix) if !pattern.literal_start().starts_with(&paths::tidy(prefix)) => {
                let msg = "must be how path begins, before the first wildcard";
                self.faults.add(at, msg);
            }
            Some(_) => {}
        }
    }

    fn resources(&mut self, resources: &mut Resources, at: Place<'_>) {
        let rules = self.rules;
        self.amount(
            resources.cpu_cores.map(f64::from),
            rules.max_cpu_cores.map(f64::from),
            at.member("cpu_cores"),
        );
        self.amount(resources.ram_gb, rules.max_ram_gb, at.member("ram_gb"));
        self.amount(resources.disk_gb, rules.max_disk_gb, at.member("disk_gb"));
        let strict = resources.backend_parameters_strict == Some(true);
        if let Some(parameters) = &mut resources.backend_parameters {
            self.backend_parameters(parameters, strict, at.member("backend_parameters"));
        }
    }

    fn amount(&mut self, wanted: Option<f64>, max: Option<f64>, at: Place<'_>) {
        if wanted.is_some_and(|wanted| wanted <= 0.0) {
            self.faults.add(at, "must be more than 0");
        } else if let (Some(wanted), Some(max)) = (wanted, max)
            && wanted > max
        {
            self.faults
                .add(at, format!("must be at most {max} on this server"));
        }
    }

    fn backend_parameters(
        &mut self,
        parameters: &mut BTreeMap<String, String>,
        strict: bool,
        at: Place<'_>,
    ) {
        let mut seen = BTreeSet::new();
        let mut dropped = BTreeSet::new();
        for (key, value) in &*parameters {
            if !seen.insert(key.to_ascii_lowercase()) {
                let msg = "another key differs from this one only in case";
                self.faults.add(at.member(key), msg);
            }
            let known = self.rules.backend_parameters.iter();
            let checked = match known
                .clone()
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
            {
                Some((_, check)) => (check.0)(value),
                None => Err("is not supported by this server".into()),
            };
            let Err(msg) = checked else { continue };
            if strict {
                self.faults.add(at.member(key), msg);
            } else {
                let name = shortened(key);
                self.warnings
                    .push(format!("backend parameter {name} is ignored: it {msg}"));
                dropped.insert(key.clone());
            }
        }
        parameters.retain(|key, _| !dropped.contains(key));
    }

    /// The keys of `env` and `tags`.
    fn names(&mut self, map: Option<&BTreeMap<String, String>>, at: Place<'_>) {
        if map.is_some_and(|map| map.contains_key("")) {
            self.faults.add(at, "a key must not be empty");
        }
    }

    /// An absolute path in its normal form.
    fn path(&mut self, path: &str, at: Place<'_>) -> Option<String> {
        paths::normal(path)
            .map_err(|msg| self.faults.add(at, msg))
            .ok()
    }

    /// The same, but not `/`.
    fn path_below_root(&mut self, path: &str, at: Place<'_>) -> Option<String> {
        let path = self.path(path, at)?;
        if path == "/" {
            self.faults.add(at, "must not be /");
            return None;
        }
        Some(path)
    }

    /// The same, and not in a place that belongs to the system.
    fn mounted_path(&mut self, path: &str, at: Place<'_>) -> Option<String> {
        let path = self.path_below_root(path, at)?;
        if let Some(msg) = paths::reserved(&path) {
            self.faults.add(at, msg);
            return None;
        }
        Some(path)
    }

    /// Refuses a working directory or stream in what the kernel or the engine has for itself.
    fn of_executor(&mut self, path: &str, at: Place<'_>) {
        if let Some(msg) = paths::reserved_for_executors(path) {
            self.faults.add(at, msg);
        }
    }
}

/// The pattern with a lone backslash for each that quotes, and for what it quotes.
fn unquoted(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        if c == '\\' {
            let _ = rest.next();
        }
        plain.push(c);
    }
    plain
}

/// The task's paths, to find those that lie below a file.
#[derive(Default)]
struct Tree {
    /// Path, whether it must be a directory, and the field.
    paths: Vec<(String, bool, String)>,
}

impl Tree {
    fn file(&mut self, path: String, at: Place<'_>) {
        self.paths.push((path, false, at.to_string()));
    }

    fn directory(&mut self, path: String, at: Place<'_>) {
        self.paths.push((path, true, at.to_string()));
    }

    fn check(mut self, faults: &mut Faults, warnings: &mut Warnings) {
        // Sorted by components, what lies below a file comes right behind it.
        self.paths
            .sort_by(|(a, a_dir, _), (b, b_dir, _)| paths::order(a, b).then(a_dir.cmp(b_dir)));
        let mut file: Option<(&str, &str)> = None;
        for (path, is_directory, field) in &self.paths {
            match file {
                Some((above, its_field)) if paths::is_within(path, above) => {
                    let is_another_name_for_it = !is_directory && path == above;
                    if is_another_name_for_it {
                        warnings.push(format!(
                            "{field} names the same file as {its_field}; the later input wins"
                        ));
                    } else {
                        faults.add(field, format!("lies below {its_field}, which is a file"));
                    }
                }
                _ if !is_directory => file = Some((path, field)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
