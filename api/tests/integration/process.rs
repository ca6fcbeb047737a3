//! The `tesk` program as a person starts it. Tasks run as processes of this machine; where
//! that is not possible (no user name spaces), those tests say so and end.

mod client;
mod disk;
mod signals;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

fn tesk() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tesk"));
    for (name, _) in std::env::vars() {
        if name.starts_with("TESK_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SERVE: [&str; 6] = [
    "serve",
    "--listen",
    "127.0.0.1:0",
    "--runtime",
    "host",
    "--data",
];

/// A `tesk serve` of its own.
struct Server {
    child: Child,
    address: String,
    /// Keeps the pipe open: a server must not die of a lost reader.
    _stdout: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(data: &Path, more: &[&str]) -> Self {
        Self::start_with(data, more, Stdio::inherit())
    }

    fn start_with(data: &Path, more: &[&str], stderr: Stdio) -> Self {
        let mut command = tesk();
        command.args(SERVE).arg(data).args(more);
        Self::spawn(command, stderr)
    }

    fn spawn(mut command: Command, stderr: Stdio) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        let mut line = String::new();
        while stdout.read_line(&mut line).unwrap() > 0 && line != "ready\n" {
            if let Some(url) = line.trim().strip_prefix("API") {
                address.push_str(url.trim().trim_end_matches("/ga4gh/tes/v1"));
            }
            line.clear();
        }
        assert_eq!(line, "ready\n", "the server did not start");
        Self {
            child,
            address,
            _stdout: stdout,
        }
    }

    fn client(&self, arguments: &[&str]) -> Output {
        run(tesk().args(arguments).env("TESK_SERVER", &self.address))
    }

    /// Standard output of a client command that succeeds.
    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.client(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn submit(&self, task: &Value) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), task.to_string()).unwrap();
        self.ask(&["submit", file.path().to_str().unwrap()])
            .trim()
            .to_owned()
    }

    fn state(&self, id: &str) -> String {
        let task: Value = serde_json::from_str(&self.ask(&["get", id, "--json"])).unwrap();
        task["state"].as_str().unwrap().to_owned()
    }

    fn wait_for_state(&self, id: &str, wanted: &str) {
        let start = Instant::now();
        while self.state(id) != wanted {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{} is not {wanted}",
                self.state(id)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn terminate(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A part of a script that waits until [`open`] is called, but not for ever. Its task has the
/// volume `/gates`.
fn gate(name: &str) -> String {
    format!("i=0; until [ -e /gates/{name} ] || [ $i = 600 ]; do i=$((i+1)); sleep 0.1; done")
}

/// Lets the first attempt at a task go through a [`gate`].
fn open(data: &TempDir, task: &str, name: &str) {
    let gate = format!("attempts/{task}-1/scratch/gates/{name}");
    std::fs::write(data.path().join(gate), "").unwrap();
}

/// Standard output or error that nobody reads any more.
fn unread() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

/// Whether tasks can run here as processes.
fn has_sandbox() -> bool {
    let folder = TempDir::new().unwrap();
    let output = run(tesk()
        .args(["run", "--runtime", "host"])
        .arg(task_file(&folder, &command(&["true"]))));
    let error = text(&output.stderr);
    if error.contains("name spaces") {
        eprintln!("not run: {error}");
        return false;
    }
    true
}

fn command(argv: &[&str]) -> Value {
    json!({ "executors": [{ "image": "none", "command": argv }] })
}

fn task_file(folder: &TempDir, task: &Value) -> std::path::PathBuf {
    let path = folder.path().join("task.json");
    std::fs::write(&path, task.to_string()).unwrap();
    path
}

#[test]
fn run_brings_a_task_with_relative_urls_to_complete() {
    if !has_sandbox() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let out = TempDir::new().unwrap();
    std::fs::write(folder.path().join("in.txt"), "one\ntwo\n").unwrap();
    let file = task_file(
        &folder,
        &json!({
            "inputs": [{ "url": "in.txt", "path": "/task/in.txt" }],
            "outputs": [{ "url": "results/out.txt", "path": "/task/out.txt" }],
            "executors": [{
                "image": "none", "command": ["wc", "-l"],
                "stdin": "/task/in.txt", "stdout": "/task/out.txt",
            }],
        }),
    );
    let output = run(tesk()
        .current_dir(out.path())
        .args(["run", "--runtime", "host"])
        .arg(&file));
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    assert!(shown.trim_end().ends_with("COMPLETE"), "{shown}");
    assert!(
        shown.contains("QUEUED") && shown.contains("results/out.txt"),
        "{shown}"
    );
    let result = std::fs::read_to_string(out.path().join("results/out.txt")).unwrap();
    assert_eq!(result.trim(), "2");
}

#[test]
fn run_fails_with_the_executor_and_shows_what_it_wrote() {
    if !has_sandbox() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let file = task_file(
        &folder,
        &command(&["sh", "-c", "echo to the log >&2; exit 3"]),
    );
    let output = run(tesk()
        .args(["run", "--runtime", "host", "--json"])
        .arg(&file));
    assert_eq!(output.status.code(), Some(1));
    let task: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(task["state"], "EXECUTOR_ERROR");
    assert_eq!(task["logs"][0]["logs"][0]["exit_code"], 3);
    assert_eq!(task["logs"][0]["logs"][0]["stderr"], "to the log\n");
    assert!(text(&output.stderr).contains("exit code 3"));
}

#[test]
fn run_refuses_a_bad_task_file_naming_its_faults() {
    let folder = TempDir::new().unwrap();
    let file = task_file(
        &folder,
        &json!({ "executors": [{ "image": "", "command": [] }] }),
    );
    let output = run(tesk().args(["run", "--runtime", "host"]).arg(&file));
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("executors[0].image: ") && error.contains("executors[0].command: "));
    std::fs::write(&file, "{\n oops").unwrap();
    let error = text(&run(tesk().arg("run").arg(&file)).stderr);
    assert!(
        error.starts_with("tesk: ") && error.contains("line 2"),
        "{error}"
    );
    let error = text(&run(tesk().args(["run", "/no/such/file"])).stderr);
    assert!(
        error.starts_with("tesk: cannot read /no/such/file"),
        "{error}"
    );
    assert_eq!(
        run(tesk().args(["run", "--nonsense"])).status.code(),
        Some(2)
    );
}

#[test]
fn serve_takes_tasks_through_the_client_to_their_end() {
    if !has_sandbox() {
        return;
    }
    let (data, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let allowed = files.path().to_str().unwrap();
    let mut server = Server::start(data.path(), &["--allow-path", allowed]);
    let canonical = files.path().canonicalize().unwrap();
    let id = server.submit(&json!({
        "name": "greeting", "tags": { "kind": "test" },
        "outputs": [{ "url": canonical.join("out.txt"), "path": "/task/out.txt" }],
        "executors": [{ "image": "none", "command": ["echo", "hello"], "stdout": "/task/out.txt" }],
    }));
    assert_eq!(
        server.ask(&["wait", &id, "--timeout", "30s"]),
        format!("{id} COMPLETE\n")
    );
    assert_eq!(
        std::fs::read_to_string(files.path().join("out.txt")).unwrap(),
        "hello\n"
    );
    let shown = server.ask(&["get", &id]);
    assert!(
        shown.contains("greeting") && shown.contains("exit code 0"),
        "{shown}"
    );
    assert!(
        server
            .ask(&["logs", "-f", &id])
            .contains("--- executor 1 stdout\nhello\n")
    );
    let listed = server.ask(&["list", "--tag", "kind=test", "--state", "complete"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert_eq!(
        server
            .ask(&["list", "--name-prefix", "other"])
            .lines()
            .count(),
        1
    );
    let all: Value = serde_json::from_str(&server.ask(&["list", "--all", "--json"])).unwrap();
    assert_eq!(all["tasks"][0]["id"], id);

    let failing = server.submit(&command(&["false"]));
    assert_eq!(
        server.client(&["wait", "-q", &failing]).status.code(),
        Some(1)
    );
    let long = server.submit(&command(&["sleep", "100"]));
    server.wait_for_state(&long, "RUNNING");
    server.ask(&["cancel", &long]);
    server.wait_for_state(&long, "CANCELED");
    let unknown = server.client(&["get", "tnothing"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).starts_with("tesk: tnothing: there is no task"));
    assert_eq!(server.terminate(), 0);
}

#[test]
fn logs_of_a_running_task_are_followed_line_by_line() {
    if !has_sandbox() {
        return;
    }
    let data = TempDir::new().unwrap();
    let server = Server::start(data.path(), &[]);
    let step = |script: &str| json!({ "image": "none", "command": ["sh", "-c", script] });
    let (a, b) = (gate("a"), gate("b"));
    let first = format!("echo first; {a}; printf '\\033[31m\\n' >&2; {b}; echo last; printf rest");
    let id = server.submit(&json!({
        "volumes": ["/gates"], "executors": [step(&first), step("echo second")],
    }));
    let mut follow = tesk();
    let mut child = follow
        .args(["logs", "-f", &id, "--server", &server.address])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().map(Result::unwrap);
    let until = |wanted: &str, next: &mut dyn FnMut() -> Option<String>| {
        while next().unwrap() != wanted {}
    };
    until("--- executor 1", &mut next);
    assert_eq!(next().unwrap(), "first");
    open(&data, &id, "a");
    assert_eq!(next().unwrap(), "\u{fffd}[31m");
    let task: Value = serde_json::from_str(&server.ask(&["get", &id, "--json"])).unwrap();
    assert_eq!(
        task["logs"][0]["logs"],
        json!([]),
        "the first one still runs"
    );
    open(&data, &id, "b");
    assert_eq!(next().unwrap(), "last");
    assert_eq!(next().unwrap(), "rest");
    let rest: Vec<String> = std::iter::from_fn(next).collect();
    assert!(rest.iter().any(|line| line == "second"), "{rest:?}");
    assert!(
        !rest.iter().any(|line| line == "first"),
        "shown twice: {rest:?}"
    );
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_that_is_killed_finds_its_tasks_again() {
    if !has_sandbox() {
        return;
    }
    let data = TempDir::new().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let done = server.submit(&command(&["true"]));
    server.wait_for_state(&done, "COMPLETE");
    let mut waits = command(&["sh", "-c", &gate("a")]);
    waits["volumes"] = json!(["/gates"]);
    let running = server.submit(&waits);
    server.wait_for_state(&running, "RUNNING");
    server.child.kill().unwrap();
    server.child.wait().unwrap();

    let server = Server::start(data.path(), &[]);
    assert_eq!(server.state(&done), "COMPLETE");
    open(&data, &running, "a");
    server.wait_for_state(&running, "COMPLETE");
    let task: Value = serde_json::from_str(&server.ask(&["get", &running, "--json"])).unwrap();
    assert_eq!(
        task["logs"].as_array().unwrap().len(),
        1,
        "it was adopted, not run again"
    );
}

#[test]
fn a_taken_port_and_a_taken_data_directory_are_said_clearly() {
    if !has_sandbox() {
        return;
    }
    let (data, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = Server::start(data.path(), &[]);
    let address = server.address.strip_prefix("http://").unwrap();
    let serve = |listen: &str, data: &Path| {
        let output = run(tesk()
            .args(["serve", "--runtime", "host", "--listen", listen, "--data"])
            .arg(data));
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let error = serve(address, other.path());
    assert!(
        error.starts_with("tesk: cannot listen on") && error.contains("--listen"),
        "{error}"
    );
    let error = serve("127.0.0.1:0", data.path());
    assert!(
        error.contains("tesk: the data directory") && error.contains("in use"),
        "{error}"
    );
}

#[test]
fn an_open_server_does_not_start_beyond_loopback() {
    let data = TempDir::new().unwrap();
    let output = run(tesk()
        .args(["serve", "--listen", "0.0.0.0:0", "--data"])
        .arg(data.path()));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("without authentication"));
}

#[test]
fn a_server_whose_own_files_tasks_could_reach_does_not_start() {
    let place = TempDir::new().unwrap();
    let at = |name: &str| place.path().join(name);
    for name in ["data", "files", "open/sub"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::fs::write(at("open/users"), "").unwrap();
    std::os::unix::fs::symlink(at("open"), at("link")).unwrap();
    let serve = |data: &str, allowed: &str, users: Option<&str>| {
        let mut command = tesk();
        // A server that is not refused ends at this name of an address.
        command.args(["serve", "--runtime", "host", "--listen", "192.0.2.1:9"]);
        command.env("TESK_SERVER__ALLOW_OPEN", "true");
        command.arg("--data").arg(at(data));
        command.arg("--allow-path").arg(at(allowed));
        if let Some(users) = users {
            command.env("TESK_AUTH__USERS", at(users));
        }
        let output = run(&mut command);
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let lies_in = |error: String| {
        let is_clear = error.contains("the data directory") && error.contains("--data");
        assert!(is_clear && error.contains("lies in"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    lies_in(serve("open/data/new", "open", None));
    lies_in(serve("open", "open", None));
    lies_in(serve("link/data", "open", None));
    lies_in(serve("open/sub", "link", None));
    assert!(!at("open/data").exists());
    let error = serve("data", ".", None);
    lies_in(error);
    let error = serve("open", "open/sub", None);
    assert!(error.contains("contains"), "{error}");
    let error = serve("data", "link", Some("open/users"));
    assert!(error.contains("the users file"), "{error}");
    let error = serve("data", "files", Some("open/users"));
    assert!(error.contains("cannot listen on"), "{error}");
}

#[test]
fn a_password_in_a_url_is_in_no_log() {
    if !has_sandbox() {
        return;
    }
    let data = TempDir::new().unwrap();
    let log = data.path().join("log");
    let mut child = tesk()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--runtime",
            "host",
            "--data",
        ])
        .arg(data.path().join("data"))
        .env("TESK_SERVER__LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let api = lines.find(|line| line.contains("API")).unwrap();
    let server = api.trim().strip_prefix("API").unwrap().trim().to_owned();
    lines.find(|line| line == "ready").unwrap();
    let folder = TempDir::new().unwrap();
    let url = "http://ada:hunter2@127.0.0.1:9/x?X-Amz-Signature=hunter2";
    let task = json!({
        "inputs": [{ "url": url, "path": "/a", "type": "FILE" }],
        "executors": [{ "image": "none", "command": ["true"], "env": { "SECRET": "hunter2" } }],
    });
    let submit = run(tesk()
        .arg("submit")
        .arg(task_file(&folder, &task))
        .env("TESK_SERVER", &server));
    assert!(submit.status.success(), "{}", text(&submit.stderr));
    std::thread::sleep(Duration::from_secs(1));
    child.kill().unwrap();
    child.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("/ga4gh/tes/v1/tasks"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}

#[test]
fn config_check_names_what_is_wrong_and_shows_what_is_on() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tesk.toml");
    let check = |content: &str| {
        std::fs::write(&file, content).unwrap();
        run(tesk().args(["config", "check", "--config"]).arg(&file))
    };
    let path = folder.path().display();
    let good = check(&format!(
        "[[storage]]\ntype = \"pvc\"\nprefix = \"file:///data\"\npath = \"{path}\"\n"
    ));
    let shown = text(&good.stdout);
    assert!(good.status.success(), "{}", text(&good.stderr));
    assert!(
        shown.contains("file:///data") && shown.contains("is valid"),
        "{shown}"
    );
    let own = format!(
        "[server]\ndata = \"{path}/data\"\n[[storage]]\ntype = \"pvc\"\nprefix = \"file://{path}\"\n"
    );
    for (content, message) in [
        ("[server]\nlisten = 5\n", "listen"),
        (
            "[[storage]]\ntype = \"ftpp\"\nprefix = \"ftp://x\"\n",
            "ftpp",
        ),
        (
            "[[storage]]\ntype = \"pvc\"\nprefix = \"file:///data\"\npth = \"/\"\n",
            "pth",
        ),
        ("[auth]\nusers = \"/no/such/users\"\n", "/no/such/users"),
        ("[server]\nlog = \"a=b=c\"\n", "server.log"),
        ("[server]\nlog = \"waring\"\n", "did you mean `warn`?"),
        ("[server]\nlog = \"warn,hyper\"\n", "`hyper` is not a level"),
        ("[server]\nrequest_timeout = 0\n", "server.request_timeout"),
        (
            "[server]\nheader_timeout = \"0s\"\n",
            "server.header_timeout",
        ),
        (&own, "the data directory"),
    ] {
        let bad = check(content);
        assert_eq!(bad.status.code(), Some(1), "{content}");
        let error = text(&bad.stderr);
        assert!(
            error.starts_with("tesk: ") && error.contains(message),
            "{error}"
        );
    }
}

#[test]
fn credentials_that_auth_makes_open_the_server() {
    if !has_sandbox() {
        return;
    }
    let (data, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let made = run(tesk().args(["auth", "token", "ada"]));
    let token = text(&made.stderr)
        .trim()
        .strip_prefix("token: ")
        .unwrap()
        .to_owned();
    let users = folder.path().join("users.toml");
    std::fs::write(&users, &made.stdout).unwrap();
    let config = folder.path().join("tesk.toml");
    std::fs::write(&config, format!("[auth]\nusers = {users:?}\n")).unwrap();
    let server = Server::start(data.path(), &["--config", config.to_str().unwrap()]);
    let refused = server.client(&["list"]);
    assert!(
        text(&refused.stderr).contains("HTTP 401"),
        "{}",
        text(&refused.stderr)
    );
    let list = |token: &str| {
        run(tesk()
            .arg("list")
            .env("TESK_SERVER", &server.address)
            .env("TESK_TOKEN", token))
    };
    assert!(list(&token).status.success());
    // A token that is taken away stops working without a restart.
    std::fs::write(&users, "").unwrap();
    let start = Instant::now();
    while list(&token).status.success() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn auth_makes_no_entry_that_the_users_file_would_refuse() {
    for user in ["", "a:b", "a\nb"] {
        let output = run(tesk().args(["auth", "token", user]));
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(text(&output.stderr).contains("must not be empty, nor hold a colon"));
    }
}

/// A server that answers every connection with what `reply` makes of the head of its request,
/// until the test ends. A status of 0 is no answer.
fn hostile_server(mut reply: impl FnMut(&str) -> (u16, Value) + Send + 'static) -> String {
    odd_server(move |head| {
        let (status, body) = reply(head);
        let body = body.to_string();
        let length = body.len();
        let reply =
            format!("{status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        (status != 0).then_some(reply)
    })
}

/// The same for any answer; what `reply` makes has all but the version of HTTP.
fn odd_server(mut reply: impl FnMut(&str) -> Option<String> + Send + 'static) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = BufReader::new(socket.unwrap());
            let mut head = String::new();
            let mut length = 0;
            loop {
                let mut line = String::new();
                socket.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                head.push_str(&line);
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            socket.read_exact(&mut vec![0; length]).unwrap();
            if let Some(reply) = reply(&head) {
                let reply = format!("HTTP/1.1 {reply}");
                socket.get_mut().write_all(reply.as_bytes()).unwrap();
            }
        }
    });
    address
}

#[test]
fn a_password_in_the_address_of_the_server_is_sent_and_not_shown() {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let mut socket = BufReader::new(listener.accept().unwrap().0);
        let mut heard = Vec::new();
        loop {
            let mut line = String::new();
            socket.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            heard.push(line.trim().to_owned());
        }
        let reply = "HTTP/1.1 500 x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
        socket.get_mut().write_all(reply.as_bytes()).unwrap();
        heard
    });
    let list = |server: &str| {
        let mut command = tesk();
        let output = run(command
            .args(["list", "--server", server])
            .env_remove("TESK_TOKEN"));
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        text(&output.stderr)
    };
    let error = list(&format!("http://ada:hunter%32@{address}"));
    let port = address.port().to_string();
    assert!(
        error.contains("HTTP 500") && error.contains(&port),
        "{error}"
    );
    assert!(!error.contains("hunter"), "{error}");
    let heard = heard.join().unwrap();
    let credentials: Vec<_> = heard
        .iter()
        .filter(|line| line.to_ascii_lowercase().starts_with("authorization:"))
        .collect();
    // ada:hunter2
    assert_eq!(credentials.len(), 1, "{heard:?}");
    assert!(
        credentials[0].ends_with("Basic YWRhOmh1bnRlcjI="),
        "{heard:?}"
    );
    for server in [
        "http://ada:hunter2@127.0.0.1:1",
        "ftp://ada:hunter2@127.0.0.1",
    ] {
        let error = list(server);
        assert!(error.contains("127.0.0.1"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let help = run(tesk()
        .args(["list", "--help"])
        .env("TESK_SERVER", "http://ada:hunter2@h"));
    assert!(text(&help.stdout).contains("TESK_SERVER"));
    assert!(!text(&help.stdout).contains("hunter2"));
}

#[test]
fn neither_a_server_nor_a_task_file_can_steer_the_terminal() {
    const EVIL: &str = "t\u{1b}]0;x\u{7}\u{9b}2J\u{202e}";
    let server = hostile_server(|request| match request.split_once(' ') {
        Some(("POST", path)) if path.contains("cancel") => (400, json!({ "msg": EVIL })),
        Some(("POST", _)) => (200, json!({ "id": EVIL })),
        Some((_, path)) if path.contains("/tasks/") => (400, json!({ "msg": EVIL })),
        _ => (
            200,
            json!({ "tasks": [{ "id": EVIL, "state": "COMPLETE" }] }),
        ),
    });
    let folder = TempDir::new().unwrap();
    let mut task = json!({ "executors": [{ "image": "i", "command": ["c"] }] });
    let good = task_file(&folder, &task).to_str().unwrap().to_owned();
    let bad = folder.path().join("bad.json");
    task["tags"] = json!({ EVIL: [] });
    std::fs::write(&bad, task.to_string()).unwrap();
    let client = |arguments: &[&str]| run(tesk().args(arguments).args(["--server", &server]));
    for output in [
        client(&["submit", &good]),
        client(&["get", "t1"]),
        client(&["wait", "t1"]),
        client(&["cancel", "t1"]),
        client(&["list"]),
        client(&["list", "--json"]),
        run(tesk().args(["run", "--runtime", "host"]).arg(&bad)),
    ] {
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(
            said.contains("]0;x") || said.contains("without the id"),
            "{said:?}"
        );
        assert!(
            !said.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']),
            "{said:?}"
        );
    }
}

#[test]
fn a_server_that_is_away_for_a_while_is_waited_for() {
    // Nobody answers, then a proxy does.
    let away = || {
        let mut asked = 0;
        hostile_server(move |_| {
            asked += 1;
            match asked {
                1..=4 => (0, Value::Null),
                5 => (502, Value::Null),
                6 => (503, json!({ "msg": "too slow" })),
                7 => (504, Value::Null),
                _ => (200, json!({ "id": "t1", "state": "COMPLETE" })),
            }
        })
    };
    let ids: Vec<String> = (0..12).map(|index| format!("t{index}")).collect();
    let wait = run(tesk().arg("wait").args(&ids).args(["--server", &away()]));
    assert!(wait.status.success(), "{}", text(&wait.stderr));
    assert_eq!(text(&wait.stdout).lines().count(), 12);
    // Said once.
    let said = text(&wait.stderr);
    assert_eq!(said.matches("asking again").count(), 1, "{said}");
    let logs = run(tesk().args(["logs", "-f", "t1", "--server", &away()]));
    assert!(logs.status.success(), "{}", text(&logs.stderr));
    assert!(text(&logs.stderr).contains("COMPLETE"));
    // Who did not say that it shall go on has an answer at once.
    let logs = run(tesk().args(["logs", "t1", "--server", &away()]));
    assert_eq!(logs.status.code(), Some(1));
    let start = Instant::now();
    let late = run(tesk().args(["wait", "t1", "--timeout", "1s", "--server", &away()]));
    assert!(text(&late.stderr).contains("not ended in time"));
    assert!(start.elapsed() < Duration::from_mins(1));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(tesk().args(["completions", shell]));
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains("submit"));
        assert!(!script.contains("__attempt"), "{shell}");
    }
}

#[test]
fn a_server_whose_log_nobody_reads_serves_and_stops_as_ever() {
    let data = TempDir::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut server = Server::start_with(data.path(), &[], writer.into());
    drop(reader);
    let id = server.submit(&command(&["true"]));
    assert!(server.ask(&["list"]).contains(&id));
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_run_whose_output_nobody_reads_is_judged_as_ever() {
    if !has_sandbox() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let of = |argv: &[&str]| {
        let mut run = tesk();
        run.args(["run", "--runtime", "host", "--json"]);
        run.arg(task_file(&folder, &command(argv)));
        run
    };
    let failed = run(of(&["false"]).stdout(unread()));
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    let complete = run(of(&["true"]).stderr(unread()));
    assert_eq!(complete.status.code(), Some(0));
    let task: Value = serde_json::from_slice(&complete.stdout).unwrap();
    assert_eq!(task["state"], "COMPLETE");
}

#[test]
fn a_variable_that_is_empty_counts_for_nothing_and_one_that_is_no_text_is_named() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let check = |name: &str, value: &[u8]| {
        run(tesk()
            .args(["config", "check", "--offline"])
            .env(name, OsStr::from_bytes(value)))
    };
    for (name, value) in [("TESK_CONFIG", &b""[..]), ("ANY_OTHER", &b"\xff"[..])] {
        let checked = check(name, value);
        assert!(checked.status.success(), "{}", text(&checked.stderr));
    }
    let refused = check("TESK_SERVER__LOG", b"hunter2\xff");
    assert_eq!(refused.status.code(), Some(1));
    let error = text(&refused.stderr);
    assert!(error.contains("TESK_SERVER__LOG is not UTF-8"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let refused = run(tesk()
        .args(["storage", "ls", "file:///"])
        .env("TESK_LOG", "waring"));
    let error = text(&refused.stderr);
    assert!(
        error.contains("TESK_LOG: `waring` is not a level"),
        "{error}"
    );
}
