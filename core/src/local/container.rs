//! Executors in containers of podman or docker, driven by their commands.

mod collect;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::attempt::{ExecutorEnd, NotStarted, say};
use super::compute::directory::{Directory, Order, append};
use super::runtime::{Engine, EngineKind};
use crate::plan::PlannedExecutor;
use crate::process::{self, Command, Echo, Ended};
use crate::rooted::{RelPath, Root};
use crate::staging::Failure;
use crate::tes::ExecutorLog;

/// The least memory a container is given: below it not even a shell starts.
const MEMORY_FLOOR: u64 = 64 << 20;
/// Longer than any command runs.
const FOR_EVER: Duration = Duration::from_hours(100 * 365 * 24);
/// The container engine's own failure.
const ENGINE_FAILED: i32 = 125;
/// What the engine ends with when a command was not started: its own failure, or the command is
/// not executable or not found.
const ENGINE_CODES: [i32; 3] = [ENGINE_FAILED, 126, 127];
/// When a container was started that never was.
const NEVER: &str = "0001-01-01";
/// The longest value in a file of variables: the engines read lines of up to 64 KiB.
const LONGEST_VALUE: usize = 32 << 10;
/// What podman reads before the first colon as the place of an image that is not in a registry:
/// a path of this machine, for most.
const TRANSPORTS: [&str; 10] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];
/// Killed: by a user, or by the kernel for want of memory.
const KILLED: i32 = 137;

/// The executors of one attempt.
pub(super) struct Containers<'a> {
    engine: &'a Engine,
    directory: &'a Directory,
    order: &'a Order,
    scratch: Arc<Root>,
}

impl<'a> Containers<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        directory: &'a Directory,
        order: &'a Order,
        scratch: Arc<Root>,
    ) -> Self {
        Self {
            engine,
            directory,
            order,
            scratch,
        }
    }

    /// Fetches the images that are not here.
    pub(super) async fn pull_images(&self) -> Result<(), NotStarted> {
        let executors = &self.order.plan.executors;
        let images: BTreeSet<&str> = executors.iter().map(|e| e.image.as_str()).collect();
        for image in images {
            let image = reference(image)?;
            let inspect = ["image", "inspect", "--format", "here", image];
            if self.engine.output(&inspect).await.is_ok() {
                continue;
            }
            if let Err(error) = self.engine.output(&["pull", "--quiet", image]).await {
                let reason = format!("cannot pull the image {image}: {error}");
                return Err(NotStarted {
                    retryable: !is_definite(&reason),
                    reason,
                });
            }
        }
        Ok(())
    }

    pub(super) async fn run(
        &self,
        index: usize,
        stop: &CancellationToken,
        grace: impl Fn() -> Duration,
    ) -> Result<ExecutorEnd, NotStarted> {
        let executor = &self.order.plan.executors[index];
        let name = Engine::container_name(&self.order.attempt, index);
        let streams = match self.streams(executor) {
            Ok(streams) => streams,
            Err(reason) => return Ok(unusable(reason)),
        };
        let image = reference(&executor.image)?;
        let variables = Variables::of(&executor.env);
        let env_file = self
            .write_env_file(index, &variables.file)
            .map_err(|error| NotStarted {
                reason: format!("cannot write the environment of a container: {error}"),
                retryable: true,
            })?;
        // A full disk is no reason not to run.
        let output = append(&self.directory.output(index)).ok();
        let echo = output.map_or(Echo::Off, |file| Echo::File(Arc::new(file)));
        let command = |workdir: Option<&Path>| {
            let argv = self.argv(
                &name,
                image,
                executor,
                &variables.arguments,
                &env_file,
                workdir,
            );
            self.command(argv, &streams, echo.clone())
        };
        let mut ended = self.run_container(&name, command(None), stop, &grace).await;
        let mut started = self.has_started(&name, &ended).await;
        // Docker makes a working directory that the image does not have, podman refuses.
        if !started
            && ended.stderr.starts_with("Error: workdir ")
            && ended.stderr.contains("does not exist on container")
        {
            self.remove(&name).await;
            let workdir = self.make_workdir(index).map_err(|error| NotStarted {
                reason: format!("cannot make a working directory: {error}"),
                retryable: true,
            })?;
            ended = self
                .run_container(&name, command(Some(&workdir)), stop, &grace)
                .await;
            started = self.has_started(&name, &ended).await;
        }
        if let Some(unwritten) = &mut ended.unwritten {
            streams.name(executor, &mut unwritten.what);
        }
        let mut end = self.judge(executor, ended, started);
        if let Ok(end) = &mut end
            && self.collects()
        {
            end.collected(self.collect(&name).await);
        }
        self.remove(&name).await;
        end
    }

    /// Whether the command of a container has run: what it prints, and its exit code, may look
    /// like the engine's own.
    async fn has_started(&self, name: &str, ended: &Ended) -> bool {
        if !ENGINE_CODES.contains(&ended.exit_code) {
            return true;
        }
        let inspect = ["inspect", "--type", "container", "--format"];
        let inspect = [&inspect[..], &["{{.State.StartedAt}}", name]].concat();
        match self.engine.output(&inspect).await {
            Ok(started) => !started.trim().starts_with(NEVER),
            // There is none, or the engine does not work at all.
            Err(_) => false,
        }
    }

    /// The engine's command, with the environment of this process: nothing of a task may steer
    /// the engine, which has rights that the task does not have.
    fn command(&self, argv: Vec<String>, streams: &Streams, echo: Echo) -> Command {
        let path = |file: &Option<std::fs::File>| {
            // As it was opened: whatever lies at its name now.
            file.as_ref()
                .map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
        };
        Command {
            argv,
            env: std::env::vars_os().collect(),
            stdin: path(&streams.stdin),
            stdout: path(&streams.stdout),
            stderr: path(&streams.stderr),
            magic_links: true,
            echo,
            tail: self.order.tail,
            ..Command::default()
        }
    }

    /// Runs a container to its end.
    async fn run_container(
        &self,
        name: &str,
        command: Command,
        stop: &CancellationToken,
        grace: &impl Fn() -> Duration,
    ) -> Ended {
        // The engine's command passes TERM on to the container; what does not end by that is
        // removed by force.
        let ask = CancellationToken::new();
        let run = process::run(command, ask.clone(), FOR_EVER);
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => return ended,
            () = stop.cancelled() => ask.cancel(),
        }
        if let Ok(ended) = tokio::time::timeout(grace(), &mut run).await {
            return ended;
        }
        self.remove(name).await;
        run.await
    }

    /// What the engine's exit code says about the command.
    fn judge(
        &self,
        executor: &PlannedExecutor,
        ended: Ended,
        started: bool,
    ) -> Result<ExecutorEnd, NotStarted> {
        if ended.exit_code == ENGINE_FAILED && !started {
            let reason = format!(
                "{} cannot run a container of {}: {}",
                self.engine.kind.program(),
                executor.image,
                ended.stderr.trim()
            );
            return Err(NotStarted {
                retryable: !is_definite(&reason),
                reason,
            });
        }
        let mut notes: Vec<String> = ended.note.into_iter().collect();
        if ended.exit_code == KILLED
            && let Some(memory) = self.memory()
        {
            notes.push(format!(
                "exit code {KILLED}: killed, perhaps for using more than its {memory} bytes of memory"
            ));
        }
        Ok(ExecutorEnd {
            log: ExecutorLog {
                start_time: Some(ended.started),
                end_time: Some(ended.ended),
                stdout: Some(ended.stdout),
                stderr: Some(ended.stderr),
                exit_code: ended.exit_code,
            },
            notes,
            unwritten: ended.unwritten.as_ref().map(Failure::of_stream),
            ..ExecutorEnd::default()
        })
    }

    fn memory(&self) -> Option<u64> {
        let asked = self.order.plan.resources.ram_bytes?;
        self.engine.limits_memory.then(|| asked.max(MEMORY_FLOOR))
    }

    /// The engine's command line; `own_workdir` is mounted as the working directory.
    fn argv(
        &self,
        name: &str,
        image: &str,
        executor: &PlannedExecutor,
        variables: &[String],
        env_file: &Path,
        own_workdir: Option<&Path>,
    ) -> Vec<String> {
        let mut argv = self.engine.argv(&["run", "--pull=never", "--name", name]);
        let mut push = |parts: &[&str]| argv.extend(parts.iter().map(|p| (*p).to_owned()));
        push(&["--label", &Engine::label(&self.order.attempt)]);
        push(&["--label", &Engine::server_label(&self.order.server)]);
        // Its label would keep containers from the files of the data directory.
        push(&["--security-opt", "label=disable"]);
        if executor.stdin.is_some() {
            push(&["--interactive"]);
        }
        if let Some(workdir) = &executor.workdir {
            push(&["--workdir", workdir]);
        }
        if let Some(cores) = self.order.plan.resources.cpu_cores
            && self.engine.limits_cpu
        {
            push(&["--cpus", &cores.to_string()]);
        }
        if let Some(memory) = self.memory() {
            push(&["--memory", &format!("{memory}b")]);
        }
        for mount in &self.order.plan.mounts {
            let source = self.scratch.path().join(mount.path.trim_start_matches('/'));
            push(&["--mount", &bind(&source, &mount.path)]);
        }
        if let (Some(source), Some(workdir)) = (own_workdir, &executor.workdir) {
            push(&["--mount", &bind(source, workdir)]);
        }
        for argument in &self.engine.arguments.run {
            push(&[argument]);
        }
        push(&["--env-file", &env_file.to_string_lossy()]);
        for variable in variables {
            push(&["--env", variable]);
        }
        let (program, arguments) = match executor.command.split_first() {
            Some((program, arguments)) => (program.as_str(), arguments),
            None => ("", &[][..]),
        };
        let entrypoint = match self.engine.kind {
            // Podman would read a program named like a JSON array as one.
            EngineKind::Podman => serde_json::json!([program]).to_string(),
            EngineKind::Docker => program.to_owned(),
        };
        push(&["--entrypoint", &entrypoint, image]);
        argv.extend_from_slice(arguments);
        argv
    }

    /// Writes an executor's variables where only the user of this process can read them.
    fn write_env_file(&self, index: usize, text: &str) -> std::io::Result<PathBuf> {
        // Beside scratch: no executor sees it.
        let path = self.scratch.path().with_file_name(format!("env-{index}"));
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }

    /// Opens the files of an executor's streams within scratch; an error is for its user.
    fn streams(&self, executor: &PlannedExecutor) -> Result<Streams, String> {
        let place = |path: &str| {
            RelPath::new(path).ok_or_else(|| format!("{path} is not a path of the container"))
        };
        let stdin = match &executor.stdin {
            None => None,
            Some(path) => {
                let opened = self.scratch.open_file(&place(path)?);
                Some(opened.map_err(|error| {
                    format!("cannot read the standard input {path}: {error} (it has to lie in an input, output or volume)")
                })?)
            }
        };
        let redirect = |path: &Option<String>| match path {
            Some(path) if self.is_mounted(path) => self
                .scratch
                .create_file(&place(path)?, 0o666)
                .map(Some)
                .map_err(|error| format!("cannot write output to {path}: {error}")),
            // Such as /dev/null: the log has it.
            _ => Ok(None),
        };
        Ok(Streams {
            stdin,
            stdout: redirect(&executor.stdout)?,
            stderr: redirect(&executor.stderr)?,
        })
    }

    fn is_mounted(&self, path: &str) -> bool {
        self.order.plan.mounts.iter().any(|mount| {
            path.strip_prefix(mount.path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// Removes a container, whatever it does.
    async fn remove(&self, name: &str) {
        if let Err(error) = self.engine.remove(&[name]).await {
            say(&format_args!("cannot remove the container {name}: {error}"));
        }
    }

    /// A directory for any user, to be mounted where the image has no working directory.
    fn make_workdir(&self, index: usize) -> std::io::Result<PathBuf> {
        // Beside scratch: no executor sees it but this one.
        let path = self
            .scratch
            .path()
            .with_file_name(format!("workdir-{index}"));
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        Ok(path)
    }
}

struct Streams {
    stdin: Option<std::fs::File>,
    stdout: Option<std::fs::File>,
    stderr: Option<std::fs::File>,
}

impl Streams {
    /// Puts the paths that the task knows in the place of those of this process.
    fn name(&self, executor: &PlannedExecutor, line: &mut String) {
        let streams = [
            (&self.stdout, &executor.stdout),
            (&self.stderr, &executor.stderr),
        ];
        for (file, path) in streams {
            if let (Some(file), Some(path)) = (file, path) {
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                if let Some(start) = line.strip_suffix(&own) {
                    *line = format!("{start}{path}");
                }
            }
        }
    }
}

/// The value of `--mount`: one line of CSV.
fn bind(source: &Path, target: &str) -> String {
    let field = |key: &str, value: &str| {
        let field = format!("{key}={value}");
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field
        }
    };
    let source = field("src", &source.to_string_lossy());
    format!("type=bind,{source},{}", field("dst", target))
}

/// An executor whose files cannot be used: its own fault, with a shell's exit code.
fn unusable(reason: String) -> ExecutorEnd {
    let now = crate::time::Timestamp::now();
    ExecutorEnd {
        log: ExecutorLog {
            start_time: Some(now),
            end_time: Some(now),
            stdout: Some(String::new()),
            stderr: Some(format!("tesk: {reason}\n")),
            exit_code: 1,
        },
        notes: vec![reason],
        ..ExecutorEnd::default()
    }
}

/// The name of an image in a registry, without `docker://`. Anything that podman might take for
/// another place, such as an archive among the files of this machine, is refused.
fn reference(image: &str) -> Result<&str, NotStarted> {
    let name = image.strip_prefix("docker://").unwrap_or(image);
    let transport = name.split_once(':').map(|(transport, _)| transport);
    // [HOST[:PORT]/]PATH[:TAG][@DIGEST]
    let plausible = name.split(['/', ':', '@']).all(|part| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    });
    if plausible && !transport.is_some_and(|transport| TRANSPORTS.contains(&transport)) {
        return Ok(name);
    }
    Err(NotStarted {
        reason: format!("{image:?} is not the name of an image in a registry"),
        retryable: false,
    })
}

/// How an executor's variables are handed to the container engine.
#[derive(Debug, PartialEq)]
struct Variables {
    /// Lines for `--env-file`, which other users of the machine cannot read.
    file: String,
    /// Values of `--env`: what such a file cannot hold, or what versions of the engines read
    /// in different ways there.
    arguments: Vec<String>,
}

impl Variables {
    fn of(env: &BTreeMap<String, String>) -> Self {
        let (mut file, mut arguments) = (String::new(), Vec::new());
        for (name, value) in env {
            let line = format!("{name}={value}");
            if is_plain_name(name) && is_plain_value(value) {
                file.push_str(&line);
                file.push('\n');
            } else {
                arguments.push(line);
            }
        }
        Self { file, arguments }
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether no engine trims, unquotes, or takes for a comment any part of a value.
fn is_plain_value(value: &str) -> bool {
    let special = |c: char| c.is_control() || ['"', '\'', '`', '\\', '#'].contains(&c);
    !value.is_empty()
        && value.len() <= LONGEST_VALUE
        && value.trim() == value
        && !value.contains(special)
}

/// Whether the engine's words mean that no other attempt will do better.
fn is_definite(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    [
        "manifest unknown",
        "name unknown",
        "not found",
        "no such image",
        "does not exist",
        "unauthorized",
        "denied",
        "invalid reference",
        "invalid image",
        "short-name",
        "no image found",
        "executable file",
    ]
    .iter()
    .any(|sign| words.contains(sign))
        && !words.contains("timeout")
        && !words.contains("connection refused")
        && !words.contains("temporary failure")
        && !words.contains("no such host")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    }

    #[test]
    fn no_variable_of_a_task_enters_the_environment_of_the_container_engine() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = directory.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let executor = PlannedExecutor {
            image: "busybox".to_owned(),
            command: vec!["true".to_owned()],
            env: env(&[("CHARSET", "/scratch/x"), ("GCONV_PATH", "a\nb")]),
            workdir: None,
            stdin: None,
            stdout: None,
            stderr: None,
            ignore_error: false,
        };
        let engine = Engine {
            kind: EngineKind::Podman,
            arguments: crate::local::ContainerArguments::default(),
            limits_cpu: false,
            limits_memory: false,
        };
        let order = Order {
            attempt: crate::scheduler::compute::AttemptId {
                task: crate::scheduler::TaskId::random(),
                number: 1,
            },
            plan: crate::plan::Plan {
                version: crate::plan::VERSION,
                task: String::new(),
                inputs: Vec::new(),
                executors: Vec::new(),
                outputs: Vec::new(),
                mounts: Vec::new(),
                directories: Vec::new(),
                resources: crate::plan::PlannedResources::default(),
            },
            runtime: super::super::runtime::Runtime::Container(engine.clone()),
            tail: 0,
            data: directory.path().to_owned(),
            server: "one".to_owned(),
        };
        let root = Root::open(&scratch, crate::rooted::Symlinks::InRoot).unwrap();
        let of_attempt = Directory::at(directory.path());
        let containers = Containers::new(&engine, &of_attempt, &order, Arc::new(root));

        let variables = Variables::of(&executor.env);
        let file = containers.write_env_file(0, &variables.file).unwrap();
        let argv = containers.argv(
            "name",
            "busybox",
            &executor,
            &variables.arguments,
            &file,
            None,
        );
        let streams = Streams {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let command = containers.command(argv, &streams, Echo::Off);

        let own: Vec<_> = std::env::vars_os().collect();
        assert_eq!(command.env, own);
        assert!(command.argv.contains(&"GCONV_PATH=a\nb".to_owned()));
        assert!(!command.argv.iter().any(|a| a.contains("CHARSET")));
        assert!(!file.starts_with(&scratch));
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_to_string(file).unwrap(),
            "CHARSET=/scratch/x\n"
        );
    }

    #[test]
    fn only_values_that_every_engine_reads_alike_go_into_the_file_of_variables() {
        for (name, value) in [
            ("A", ""),
            ("A", " x"),
            ("A", "x\t"),
            ("A", "x\ny"),
            ("A", "x\r"),
            ("A", "\"x\""),
            ("A", "x #y"),
            ("A*", "x"),
            ("#A", "x"),
            ("A B", "x"),
        ] {
            let split = Variables::of(&env(&[(name, value)]));
            assert_eq!(split.file, "", "{name}={value}");
            assert_eq!(split.arguments, [format!("{name}={value}")]);
        }
        let split = Variables::of(&env(&[("A", "$HOME=*, x y")]));
        assert_eq!(split.file, "A=$HOME=*, x y\n");
        assert_eq!(split.arguments, Vec::<String>::new());
    }

    #[test]
    fn an_image_is_the_name_of_one_in_a_registry_and_nothing_else() {
        for (image, name) in [
            ("busybox", "busybox"),
            ("docker:24", "docker:24"),
            ("docker://quay.io/a/b:1", "quay.io/a/b:1"),
            ("localhost:5000/a/b_c:T.1-x", "localhost:5000/a/b_c:T.1-x"),
            ("a/b:1@sha256:00ff", "a/b:1@sha256:00ff"),
            (
                "docker.io/library/oci:latest",
                "docker.io/library/oci:latest",
            ),
        ] {
            assert_eq!(reference(image).unwrap(), name);
        }
        for image in [
            "",
            "-v",
            "--privileged",
            "a b",
            "a\nb",
            "/etc",
            "./a",
            "a/../b",
            "a//b",
            "docker://",
            "docker://docker://a",
            "docker://dir:a",
            "dir:/etc",
            "dir:etc",
            "oci:/a:b",
            "oci:latest",
            "oci-archive:a",
            "docker-archive:/a.tar",
            "docker-daemon:a:b",
            "containers-storage:a",
            "containers-storage:[overlay@/a]b",
            "sif:a",
            "ostree:a",
            "tarball:a",
            "http://a/b.tar",
        ] {
            let refused = reference(image).unwrap_err();
            assert!(!refused.retryable, "{image}");
        }
    }

    #[test]
    fn a_pull_that_failed_for_want_of_a_registry_may_be_tried_again() {
        assert!(!is_definite("dial tcp: i/o timeout"));
        assert!(!is_definite(
            "Get \"https://x/v2/\": dial tcp: connection refused"
        ));
        assert!(is_definite("manifest unknown: manifest unknown"));
        // As podman begins whatever a registry answers.
        let podman = |words: &str| {
            let image = "docker://quay.io/a/b:1: initializing source docker://quay.io/a/b:1";
            is_definite(&format!(
                "Error: unable to copy from source {image}: {words}"
            ))
        };
        assert!(podman(
            "reading manifest 1 in quay.io/a/b: manifest unknown"
        ));
        assert!(podman("reading manifest 1 in quay.io/a/b: name unknown"));
        assert!(!podman(
            "received unexpected HTTP status: 503 Service Unavailable"
        ));
        assert!(!podman("toomanyrequests: too many requests to registry"));
        assert!(!podman(
            "read tcp 10.0.0.1:1->10.0.0.2:443: read: connection reset by peer"
        ));
    }
}
