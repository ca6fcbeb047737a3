//! A namespace, one `tesk serve` or two that make pods in it, and a client of them.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Response;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Mutex;

const BASE: &str = "/ga4gh/tes/v1";
/// The service account, its Role and the binding, as the chart has them.
const RIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests/rbac.yaml");
/// Settings by which another server schedules soon after the death of one.
pub(crate) const SOON: &str = r#"kubernetes.lease = { duration = "6s", renew = "2s" }"#;
/// What has not happened by then will not.
const PATIENCE: Duration = Duration::from_mins(4);

/// A namespace with its servers. All go when it is dropped.
pub(crate) struct Place {
    pub(crate) namespace: String,
    folder: TempDir,
    replicas: [Replica; 2],
    client: reqwest::Client,
    /// Which of them the client asks.
    asked: AtomicUsize,
}

/// A server that may run.
#[derive(Default)]
struct Replica {
    /// Another after each start.
    port: AtomicU16,
    server: Mutex<Option<Server>>,
}

struct Server {
    child: Child,
    /// Keeps the pipe open: a server must not die of a lost reader.
    _stdout: BufReader<ChildStdout>,
}

/// The address of this machine in the network of pods.
pub(crate) fn host() -> String {
    std::env::var("TESK_CLUSTER_HOST").unwrap_or_default()
}

impl Place {
    /// `settings` are added to the configuration, as a document of their own.
    pub(crate) async fn start(name: &str, settings: &str) -> Result<Self> {
        let place = Self::namespace(name, settings).await?;
        place.serve().await?;
        Ok(place)
    }

    /// All but the server: what it needs of the cluster can be made before it.
    pub(crate) async fn namespace(name: &str, settings: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = TempDir::new()?;
        let place = Self {
            namespace: format!("tesk-{name}-{}-{number}", std::process::id()),
            folder,
            replicas: <[Replica; 2]>::default(),
            client: reqwest::Client::builder().no_proxy().build()?,
            asked: AtomicUsize::new(0),
        };
        place.configure(settings)?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": place.namespace },
        });
        place.create(&namespace).await?;
        let account = [
            "get",
            "serviceaccount/default",
            "configmap/kube-root-ca.crt",
        ];
        place
            .until("the namespace's service account", || async {
                Ok(place.kubectl(&account).await.is_ok().then_some(()))
            })
            .await?;
        place.log_in().await?;
        Ok(place)
    }

    /// Writes the kubeconfig of the server: it has the rights that the chart gives, and no other.
    async fn log_in(&self) -> Result<()> {
        self.kubectl(&["apply", "-f", RIGHTS]).await?;
        let token = self
            .kubectl(&["create", "token", "tesk", "--duration=2h"])
            .await?;
        let view = ["config", "view", "--raw", "--minify", "--output=json"];
        let mut config: Value = serde_json::from_str(&self.kubectl(&view).await?)?;
        config["users"][0]["user"] = json!({ "token": token.trim() });
        std::fs::write(self.kubeconfig(), config.to_string())?;
        Ok(())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Writes the configuration. A task asks for little, so that many fit on one small node.
    fn configure(&self, settings: &str) -> Result<()> {
        let mut config: toml::Table = toml::from_str(&format!(
            r#"
            [server]
            engine = "kubernetes"
            log = "info,tesk_core=debug"
            [limits]
            grace = "2s"
            [kubernetes]
            kubeconfig = "{}"
            namespace = "{}"
            default_memory = "64MiB"
            min_memory = "16MiB"
            [kubernetes.patch.pod.spec.resources.requests]
            cpu = "10m"
            memory = "16Mi"
            "#,
            self.kubeconfig().display(),
            self.namespace
        ))?;
        merge(&mut config, toml::from_str(settings)?);
        std::fs::write(self.config(), toml::to_string(&config)?)?;
        Ok(())
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("tesk.toml")
    }

    /// What the servers say; it stays for who looks for the cause of a failure.
    pub(crate) fn log(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", self.namespace))
    }

    /// Starts the server, and waits until it is ready.
    pub(crate) async fn serve(&self) -> Result<()> {
        self.serve_as(0).await
    }

    /// Starts one of two servers, and waits until it is ready.
    pub(crate) async fn serve_as(&self, number: usize) -> Result<()> {
        let Replica { port, server } = &self.replicas[number];
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_tesk"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TESK_")) {
            command.env_remove(name);
        }
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        while line != "ready\n" {
            line.clear();
            let read = stdout.read_line(&mut line).await?;
            ensure!(
                read > 0,
                "the server did not start: see {}",
                self.log().display()
            );
            let api = line.trim_start().strip_prefix("API   http://127.0.0.1:");
            if let Some((now, _)) = api.and_then(|api| api.split_once('/')) {
                port.store(now.parse()?, Ordering::Relaxed);
            }
        }
        *server.lock().await = Some(Server {
            child,
            _stdout: stdout,
        });
        Ok(())
    }

    /// Kills the server, as a machine does that loses power.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.kill_as(0).await
    }

    /// Kills one of two servers.
    pub(crate) async fn kill_as(&self, number: usize) -> Result<()> {
        let server = self.replicas[number].server.lock().await.take();
        Ok(server.context("no server")?.child.kill().await?)
    }

    /// Sends a signal to one of two servers.
    pub(crate) async fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let server = self.replicas[number].server.lock().await;
        let pid = server.as_ref().and_then(|server| server.child.id());
        let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        Ok(kill_process(pid.context("no server")?, signal)?)
    }

    /// From now on the client asks this one of two servers.
    pub(crate) fn ask(&self, number: usize) {
        self.asked.store(number, Ordering::Relaxed);
    }

    fn port(&self, number: usize) -> u16 {
        self.replicas[number].port.load(Ordering::Relaxed)
    }

    /// What one of two servers says to `/readyz`.
    pub(crate) async fn ready(&self, number: usize) -> Result<String> {
        let url = format!("http://127.0.0.1:{}/readyz", self.port(number));
        let response = self.client.get(url).send().await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status == 200, "not ready: {status}: {text}");
        Ok(text)
    }

    /// Asks for a path below the base of the API, whatever the answer.
    pub(crate) async fn response(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response> {
        let port = self.port(self.asked.load(Ordering::Relaxed));
        let url = format!("http://127.0.0.1:{port}{BASE}{path}");
        let mut request = self.client.request(method.parse()?, url);
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?)
    }

    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.response(method, path, body).await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status == 200, "{method} {path}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Gives the task to the server.
    pub(crate) async fn submit(&self, task: &Value) -> Result<String> {
        let reply = self.request("POST", "/tasks", Some(task)).await?;
        Ok(text(&reply["id"]).to_owned())
    }

    pub(crate) async fn task(&self, id: &str) -> Result<Value> {
        self.request("GET", &format!("/tasks/{id}?view=FULL"), None)
            .await
    }

    /// What an executor prints, as it does.
    pub(crate) async fn output(&self, id: &str, executor: usize) -> Result<reqwest::Response> {
        let port = self.port(self.asked.load(Ordering::Relaxed));
        let url = format!("http://127.0.0.1:{port}{BASE}/tasks/{id}:output?executor={executor}");
        Ok(self.client.get(url).send().await?.error_for_status()?)
    }

    pub(crate) async fn cancel(&self, id: &str) -> Result<()> {
        let path = format!("/tasks/{id}:cancel");
        self.request("POST", &path, None).await?;
        Ok(())
    }

    /// Waits until `look` finds what it looks for.
    pub(crate) async fn until<T, F>(&self, what: &str, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let start = Instant::now();
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            ensure!(start.elapsed() < PATIENCE, "in vain: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a task's document is as wanted.
    pub(crate) async fn wait(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let start = Instant::now();
        loop {
            let task = self.task(id).await?;
            if wanted(&task) {
                return Ok(task);
            }
            if is_terminal(&task) || start.elapsed() > PATIENCE {
                bail!("not {what}: {task:#}\nserver log: {}", self.log().display());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn wait_for(&self, id: &str, state: &str) -> Result<Value> {
        self.wait(id, state, |task| task["state"] == state).await
    }

    /// Runs a task to its end, which must be this state.
    pub(crate) async fn run(&self, task: &Value, state: &str) -> Result<Value> {
        let id = self.submit(task).await?;
        self.wait_for(&id, state).await
    }

    /// `kubectl` in the namespace; its standard output.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "").await
    }

    async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new("kubectl")
            .args(["--cache-dir", self.folder.path().to_str().context("path")?])
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("kubectl: see conformance/cluster/run")?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes an object.
    pub(crate) async fn create(&self, object: &Value) -> Result<()> {
        let input = object.to_string();
        self.kubectl_with(&["create", "-f", "-"], &input).await?;
        Ok(())
    }

    /// All objects of these kinds (`pods,secrets`), as JSON.
    pub(crate) async fn objects(&self, kinds: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self
            .kubectl(&["get", kinds, "-o", "json", "--selector", selector])
            .await?;
        let list: Value = serde_json::from_str(&list)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// What is there of a task besides its record.
    pub(crate) async fn left_of(&self, id: &str) -> Result<Vec<String>> {
        let selector = format!("tesk.elixir-cloud.org/task={id}");
        let objects = self.objects("pods,secrets,configmaps", &selector).await?;
        let name = |object: &Value| {
            let part = &object["metadata"]["labels"]["app.kubernetes.io/component"];
            format!("{} {}", text(part), text(&object["metadata"]["name"]))
        };
        let mut names: Vec<_> = objects.iter().map(name).collect();
        names.retain(|name| {
            !["record ", "document ", "result "]
                .iter()
                .any(|part| name.starts_with(part))
        });
        Ok(names)
    }

    /// Waits until nothing but their records is there of all tasks.
    pub(crate) async fn all_gone(&self) -> Result<()> {
        let of_attempts = "app.kubernetes.io/component in (attempt,plan,secret)";
        self.nothing_left("pods,secrets,configmaps", of_attempts)
            .await
    }

    /// Waits until there are no such objects.
    pub(crate) async fn nothing_left(&self, kinds: &str, selector: &str) -> Result<()> {
        self.until(&format!("{kinds} with {selector} go"), || async {
            let left = self.objects(kinds, selector).await?;
            if !left.is_empty() {
                // Each look is a process.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            Ok(left.is_empty().then_some(()))
        })
        .await
    }

    /// Waits until nothing but its record is there of a task.
    pub(crate) async fn gone(&self, id: &str) -> Result<()> {
        self.until("that pod, plan and Secret go", || async {
            let left = self.left_of(id).await?;
            if !left.is_empty() {
                // Each look is a process.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            Ok(left.is_empty().then_some(()))
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            if let Some(server) = replica.server.get_mut() {
                let _ = server.child.start_kill();
            }
        }
        let _ = std::process::Command::new("kubectl")
            .args(["delete", "namespace", "--wait=false", &self.namespace])
            .args(["--cache-dir"])
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

/// A task of one shell script.
pub(crate) fn script(script: &str) -> Value {
    json!({ "executors": [{ "image": "busybox:1", "command": ["sh", "-c", script] }] })
}

/// A task with more members.
pub(crate) fn with(mut task: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        task[key] = value.clone();
    }
    task
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The lines that say why, of all attempts.
pub(crate) fn reasons(task: &Value) -> String {
    let logs = task["logs"].as_array().cloned().unwrap_or_default();
    let lines = logs.iter().filter_map(|log| log["system_logs"].as_array());
    let lines: Vec<_> = lines.flatten().map(text).collect();
    lines.join("\n")
}

/// What an executor of the last attempt wrote to standard output.
pub(crate) fn stdout(task: &Value, executor: usize) -> String {
    let logs = task["logs"].as_array().and_then(|logs| logs.last());
    let log = logs.map(|log| &log["logs"][executor]["stdout"]);
    log.map(text).unwrap_or_default().to_owned()
}

pub(crate) fn is_terminal(task: &Value) -> bool {
    [
        "COMPLETE",
        "EXECUTOR_ERROR",
        "SYSTEM_ERROR",
        "CANCELED",
        "PREEMPTED",
    ]
    .contains(&text(&task["state"]))
}
