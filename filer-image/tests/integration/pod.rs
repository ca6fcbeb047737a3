//! A pod in small.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tesk_core::plan::{
    InputSource, Mount, MountKind, OutputSource, Plan, PlannedExecutor, PlannedInput,
    PlannedOutput, PlannedResources, VERSION, packed,
};
use tesk_core::scheduler::compute::Report;
use tesk_core::tes::FileType;
use tesk_filer::handover::{Seen, Step, Watch};

/// No step may take longer.
const LONG: Duration = Duration::from_secs(30);

pub(super) struct Pod {
    directory: tempfile::TempDir,
    pub(super) plan: Plan,
    /// Into how many parts of a volume the plan is packed, if it is.
    pub(super) parts: Option<usize>,
}

/// A container's process; killed with the pod.
pub(super) struct Container {
    child: Child,
    streams: [File; 2],
}

impl Pod {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["w", "store", "handover", "bin"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let work = directory.path().join("w").to_str().unwrap().to_owned();
        let pod = Self {
            plan: Plan {
                version: VERSION,
                task: "t".into(),
                inputs: Vec::new(),
                executors: Vec::new(),
                outputs: Vec::new(),
                mounts: vec![Mount {
                    path: work.clone(),
                    kind: MountKind::Directory,
                }],
                directories: vec![work],
                resources: PlannedResources::default(),
            },
            parts: None,
            directory,
        };
        let config = format!(
            "[server]\nlisten = \"x\"\n[transfer]\nretries = 0\n[[storage]]\ntype = \"pvc\"\n\
             prefix = {:?}\n",
            pod.url("")
        );
        std::fs::write(pod.at("tesk.toml"), config).unwrap();
        pod
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Adds an entry to the configuration.
    pub(super) fn serve(&self, storage: &str) {
        let mut config = std::fs::read_to_string(self.at("tesk.toml")).unwrap();
        config.push_str(storage);
        std::fs::write(self.at("tesk.toml"), config).unwrap();
    }

    /// A path in scratch, as executors name it.
    pub(super) fn work(&self, name: &str) -> String {
        self.at("w").join(name).to_str().unwrap().to_owned()
    }

    /// An address in the storage.
    pub(super) fn url(&self, name: &str) -> String {
        format!("file://{}", self.at("store").join(name).display())
    }

    pub(super) fn stored(&self, name: &str) -> String {
        std::fs::read_to_string(self.at("store").join(name)).unwrap()
    }

    pub(super) fn input(&mut self, url: &str, name: &str) {
        self.plan.inputs.push(PlannedInput {
            index: self.plan.inputs.len(),
            from: InputSource::Url(url.into()),
            path: self.work(name),
            kind: FileType::File,
            streamable: false,
            mounted: None,
        });
    }

    pub(super) fn executor(&mut self, argv: &[&str]) -> &mut PlannedExecutor {
        self.plan.executors.push(PlannedExecutor {
            image: "none".into(),
            command: argv.iter().map(|s| (*s).to_owned()).collect(),
            workdir: Some(self.work("")),
            stdin: None,
            stdout: None,
            stderr: None,
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            ignore_error: false,
        });
        self.plan.executors.last_mut().unwrap()
    }

    pub(super) fn shell(&mut self, script: &str) -> &mut PlannedExecutor {
        self.executor(&["sh", "-c", script])
    }

    pub(super) fn output(&mut self, name: &str, url: &str) {
        self.plan.outputs.push(PlannedOutput {
            index: self.plan.outputs.len(),
            url: url.into(),
            from: OutputSource::File(self.work(name)),
            collected_at: None,
        });
    }

    /// `filer prepare`, as the hook of the first container.
    pub(super) fn prepare(&self) -> Output {
        match self.parts {
            None => std::fs::write(
                self.at("plan.json"),
                serde_json::to_vec(&self.plan).unwrap(),
            )
            .unwrap(),
            Some(parts) => {
                let packed = packed::pack(&self.plan);
                let size = packed.len().div_ceil(parts);
                let name = |(n, part): (usize, &[u8])| (format!("plan.{n:04}"), part.to_vec());
                let parts: Vec<_> = packed
                    .as_bytes()
                    .chunks(size)
                    .enumerate()
                    .map(name)
                    .collect();
                self.volume("plan", &parts);
            }
        }
        self.run_prepare()
    }

    pub(super) fn run_prepare(&self) -> Output {
        self.filer("prepare")
            .arg("--install")
            .arg(self.at("bin"))
            .arg("--reason")
            .arg(self.at("reason"))
            .arg("--config")
            .arg(self.at("tesk.toml"))
            .output()
            .unwrap()
    }

    /// A volume as the kubelet lays it out, so that all its files change at once.
    pub(super) fn volume(&self, name: &str, files: &[(String, Vec<u8>)]) {
        let volume = self.at(name);
        let _ = std::fs::remove_dir_all(&volume);
        let data = volume.join("..2026_01_01_00_00_00.123456789");
        std::fs::create_dir_all(&data).unwrap();
        symlink(data.file_name().unwrap(), volume.join("..data")).unwrap();
        for (name, content) in files {
            std::fs::write(data.join(name), content).unwrap();
            symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
        }
    }

    /// The command of a container, with the options that all have.
    pub(super) fn filer(&self, command: &str) -> Command {
        let mut filer = Command::new(env!("CARGO_BIN_EXE_filer"));
        filer
            .arg(command)
            .arg("--handover")
            .arg(self.at("handover"));
        if command == "exec" {
            // As installed: executors have no other.
            filer = Command::new(self.at("bin/filer"));
            filer
                .arg(command)
                .arg("--handover")
                .arg(self.at("handover"));
            filer.arg("--plan").arg(self.at("bin/plan.json"));
        } else {
            let plan = if self.parts.is_some() {
                "plan"
            } else {
                "plan.json"
            };
            filer
                .arg("--plan")
                .arg(self.at(plan))
                .args(["--scratch", "/"]);
        }
        if command == "outputs" {
            filer.arg("--report").arg(self.at("report.json"));
        }
        if command == "inputs" || command == "outputs" {
            filer.arg("--config").arg(self.at("tesk.toml"));
            let secrets = self.at("secrets/secrets.json");
            if exists(&secrets) {
                filer.arg("--secrets").arg(secrets);
            }
        }
        if command == "exec" || command == "outputs" {
            filer.arg("--stop-file").arg(self.at("stop"));
        }
        filer
    }

    pub(super) fn exec(&self, number: usize) -> Command {
        let mut filer = self.filer("exec");
        filer
            .arg("--step")
            .arg(number.to_string())
            .args(["--grace", "1"]);
        if self.plan.outputs.iter().any(|o| o.collected_at.is_some()) {
            filer.args(["--scratch", "/"]);
        }
        filer
    }

    /// Starts `prepare` and then all containers at once.
    pub(super) fn start(&self) -> Vec<Container> {
        let prepared = self.prepare();
        assert!(prepared.status.success(), "{prepared:?}");
        let executors = (0..self.plan.executors.len()).map(|n| self.exec(n));
        let mut commands = vec![self.filer("inputs")];
        commands.extend(executors);
        commands.push(self.filer("outputs"));
        commands.into_iter().map(Container::start).collect()
    }

    /// Runs the whole pod to its end.
    pub(super) fn run(&self) -> (Vec<i32>, Report) {
        let codes = self
            .start()
            .into_iter()
            .map(|container| container.end().code())
            .collect();
        (codes, self.report())
    }

    pub(super) fn report(&self) -> Report {
        serde_json::from_slice(&std::fs::read(self.at("report.json")).unwrap()).unwrap()
    }

    pub(super) fn seen(&self, step: Step) -> Seen {
        Watch::new(&self.at("handover"), step).look()
    }

    /// Waits until a step is seen as `wanted`.
    pub(super) fn until(&self, step: Step, wanted: impl Fn(&Seen) -> bool) {
        until(|| wanted(&self.seen(step)));
    }

    /// A hand-over record, as a process that is not the filer would write it.
    pub(super) fn forge(&self, step: Step, verdict: &str) -> Value {
        let record = json!({
            "version": 1, "verdict": verdict,
            "started": "2026-01-01T00:00:00.000Z", "ended": "2026-01-01T00:00:00.000Z",
        });
        let directory = self.at("handover").join(step.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("record"), record.to_string()).unwrap();
        record
    }
}

/// How a container ended.
#[derive(Debug)]
pub(super) struct End {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl End {
    /// As a shell would give it.
    pub(super) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }

    pub(super) fn stdout(&self) -> &str {
        &self.stdout
    }

    pub(super) fn stderr(&self) -> &str {
        &self.stderr
    }
}

impl Container {
    pub(super) fn start(mut command: Command) -> Self {
        let streams = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];
        let child = command
            .stdin(Stdio::null())
            .stdout(streams[0].try_clone().unwrap())
            .stderr(streams[1].try_clone().unwrap())
            .spawn()
            .unwrap();
        Self { child, streams }
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has this file open.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let path = path.canonicalize().unwrap();
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        files
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .any(|open| open == path)
    }

    /// Waits for its end, but not for ever.
    pub(super) fn end(mut self) -> End {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < LONG, "hangs: {:?}", self.written());
            std::thread::sleep(Duration::from_millis(5));
        };
        let [stdout, stderr] = self.written();
        End {
            status,
            stdout,
            stderr,
        }
    }

    fn written(&self) -> [String; 2] {
        self.streams.each_ref().map(|mut stream| {
            let mut bytes = Vec::new();
            stream.seek(SeekFrom::Start(0)).unwrap();
            stream.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "never came true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
