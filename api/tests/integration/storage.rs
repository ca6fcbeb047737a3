//! `tesk storage` and the probes of `tesk config check`, as a person starts them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

fn tesk(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tesk"));
    for (name, _) in std::env::vars() {
        if name.starts_with("TESK_") {
            command.env_remove(name);
        }
    }
    let command = command.args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder `data` with a file and a folder with a file, and a configuration that serves it.
fn folder() -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("data/sub/deep")).unwrap();
    std::fs::write(folder.path().join("data/a"), "four").unwrap();
    std::fs::write(folder.path().join("data/sub/deep/b \u{1b}[2J"), "").unwrap();
    let config = configured(&folder, "");
    (folder, config)
}

/// A configuration with `more` entries after `file:///mapped`; its path.
fn configured(folder: &TempDir, more: &str) -> String {
    let path = folder.path().join("tesk.toml");
    let data = folder.path().join("data");
    let entry = format!(
        "[[storage]]\ntype='pvc'\nprefix='file:///mapped'\npath='{}'\n",
        data.display()
    );
    std::fs::write(&path, entry + more).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A server that does this with each connection.
fn server(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    address
}

/// A web server whose answer is always the same.
fn answering(reply: &'static str) -> String {
    server(move |mut stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = write!(stream, "HTTP/1.1 {reply}\r\nConnection: close\r\n\r\n");
    })
}

/// Every name below a folder with its content.
fn tree(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(tree(&path));
            found.insert(name, Vec::new());
        } else {
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

/// The verdict on the line of a prefix.
fn verdict(shown: &str, prefix: &str) -> String {
    let line = shown.lines().find_map(|line| line.split_once(prefix));
    line.unwrap_or_else(|| panic!("{prefix}: {shown}"))
        .1
        .trim()
        .to_owned()
}

#[test]
fn a_check_says_in_words_what_is_wrong_with_each_storage() {
    let (folder, _) = folder();
    // Nobody listens there, nor can anybody.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let refused = closed.local_addr().unwrap().to_string();
    let login = answering("401 Unauthorized\r\nContent-Length: 0");
    let plain = answering("400 Bad Request\r\nContent-Length: 0");
    let no_listing = answering("403 Forbidden\r\nContent-Length: 0");
    let config = configured(
        &folder,
        &format!(
            "[[storage]]\ntype='pvc'\nprefix='file:///gone'\npath='{0}/gone'\n\
             [[storage]]\ntype='ftp'\nprefix='ftp://{refused}/x'\n\
             [[storage]]\ntype='s3'\nprefix='s3://bucket'\nendpoint='http://{refused}'\nanonymous=true\n\
             [[storage]]\ntype='http'\nprefix=['http://{refused}/', 'http://{login}/', \
             'https://{plain}/', 'http://no-such-host.invalid/', 'http://169.254.169.254/', \
             'http://{no_listing}/', 'http://']\n",
            folder.path().display()
        ),
    );
    let checked = tesk(&["storage", "check", "--config", &config]);
    let shown = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{shown}");
    assert!(text(&checked.stderr).contains("8 storages cannot be used"));
    for (prefix, word, says) in [
        ("file:///mapped ", "works", "can be listed"),
        ("file:///gone ", "fails", "volume is not there"),
        (&format!("ftp://{refused}/x "), "fails", "nothing listens"),
        ("s3://bucket ", "fails", "nothing listens"),
        (&format!("http://{refused}/ "), "fails", "nothing listens"),
        (&format!("http://{login}/ "), "fails", "credentials"),
        (&format!("https://{plain}/ "), "fails", "no TLS"),
        ("http://169.254.169.254/ ", "fails", "not reached from here"),
        (&format!("http://{no_listing}/ "), "not known", "of a file"),
        ("http:// ", "not known", "serves every host"),
    ] {
        let verdict = verdict(&shown, prefix);
        assert!(
            verdict.starts_with(word) && verdict.contains(says),
            "{prefix}: {verdict}"
        );
    }
    // Where nobody can be asked for names, there is no answer.
    let unresolved = verdict(&shown, "http://no-such-host.invalid/ ");
    assert!(
        unresolved.starts_with("fails")
            && ["cannot be resolved", "is the address right"]
                .iter()
                .any(|says| unresolved.contains(says)),
        "{unresolved}"
    );
}

#[test]
fn a_check_changes_nothing_and_with_write_leaves_nothing() {
    let (folder, config) = folder();
    let before = tree(folder.path());
    for (more, says) in [(None, "can be listed"), (Some("--write"), "was written")] {
        let arguments = ["storage", "check", "--config", &config];
        let arguments: Vec<_> = arguments.into_iter().chain(more).collect();
        let checked = tesk(&arguments);
        assert!(checked.status.success(), "{checked:?}");
        assert!(text(&checked.stdout).contains(says), "{checked:?}");
        assert_eq!(tree(folder.path()), before);
    }
    // Not even root makes files there.
    let refused = "[[storage]]\ntype='pvc'\nprefix='file:///proc'\npath='/proc/sys/kernel'\n";
    let config = configured(&folder, refused);
    assert!(
        tesk(&["storage", "check", "--config", &config])
            .status
            .success()
    );
    let checked = tesk(&["storage", "check", "--config", &config, "--write"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let verdict = verdict(&text(&checked.stdout), "file:///proc ");
    assert!(verdict.contains("cannot be written"), "{verdict}");
}

#[test]
fn a_check_of_urls_wants_something_to_be_there() {
    let (folder, config) = folder();
    let here = folder.path().join("data/a");
    let check = |url: &str| tesk(&["storage", "check", "--config", &config, url]);
    let found = check(here.to_str().unwrap());
    assert!(text(&found.stdout).contains("a file of 4 B can be read"));
    assert!(check("file:///mapped/a").status.success());
    let check_writing = ["storage", "check", "--config", &config, "--write"];
    let tried = tesk(&[&check_writing[..], &["file:///mapped/a"]].concat());
    assert!(
        text(&tried.stdout).contains("writing was not tried"),
        "{tried:?}"
    );
    let missing = check("file:///mapped/b");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stdout).contains("nothing is there"));
    let unserved = check("nope://me:s3cret@host/x");
    assert_eq!(unserved.status.code(), Some(1));
    assert!(!format!("{unserved:?}").contains("s3cret"), "{unserved:?}");
}

#[test]
fn a_server_that_does_not_answer_holds_a_check_up_no_longer_than_it_may() {
    let folder = TempDir::new().unwrap();
    let silent = server(std::mem::forget);
    let entry = format!("[[storage]]\ntype='http'\nprefix='http://{silent}/'\n");
    let config = configured(&folder, &entry);
    let begin = Instant::now();
    let checked = tesk(&[
        "storage",
        "check",
        "--timeout",
        "500ms",
        "--config",
        &config,
    ]);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(checked.status.code(), Some(1));
    let verdict = verdict(&text(&checked.stdout), &format!("http://{silent}/ "));
    assert!(verdict.contains("no answer within 0.5s"), "{verdict}");
}

#[test]
fn config_check_probes_unless_it_is_offline() {
    let (folder, _) = folder();
    let config = configured(
        &folder,
        "[[storage]]\ntype='pvc'\nprefix='file:///gone'\npath='/no/such/volume'\n",
    );
    let checked = tesk(&["config", "check", "--config", &config]);
    let shown = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(1), "{shown}");
    assert!(shown.contains("the configuration is valid"), "{shown}");
    assert!(
        verdict(&shown, "file:///gone  ").starts_with("fails"),
        "{shown}"
    );
    let offline = tesk(&["config", "check", "--offline", "--config", &config]);
    assert!(offline.status.success(), "{offline:?}");
    assert!(!text(&offline.stdout).contains("fails"), "{offline:?}");
}

#[test]
fn a_listing_has_names_sizes_and_times_and_cannot_steer_the_terminal() {
    let (_folder, config) = folder();
    let ls = |arguments: &[&str]| {
        let listed = tesk(&[&["storage", "ls", "--config", &config], arguments].concat());
        assert!(listed.status.success(), "{listed:?}");
        text(&listed.stdout)
    };
    let top = ls(&["file:///mapped/"]);
    let lines: Vec<_> = top.lines().map(str::split_whitespace).collect();
    let lines: Vec<Vec<_>> = lines.into_iter().map(Iterator::collect).collect();
    assert_eq!((lines[0][0], lines[0][2]), ("4", "a"), "{top}");
    assert!(lines[0][1].starts_with("20"), "{top}");
    assert_eq!(lines[1], ["-", "-", "sub/"], "{top}");
    assert_eq!(lines.len(), 2, "{top}");
    let all = ls(&["-r", "file:///mapped"]);
    assert!(all.contains("sub/deep/b  [2J"), "{all}");
    assert!(!all.contains('\u{1b}'), "{all}");
    let json = ls(&["-r", "--json", "file:///mapped"]);
    let sizes: BTreeMap<_, _> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|entry| {
            (
                entry["name"].as_str().unwrap().to_owned(),
                entry["size"].as_u64(),
            )
        })
        .collect();
    assert_eq!(sizes["a"], Some(4), "{json}");
    assert_eq!(sizes["sub/deep/b \u{1b}[2J"], Some(0), "{json}");
    assert_eq!(sizes["sub/deep"], None, "{json}");
    let one = ls(&["file:///mapped/a?sig=s3cret"]);
    assert!(one.trim_end().ends_with("Z  a"), "{one}");
}

#[test]
fn what_is_at_a_url_is_shown_for_people_and_programs() {
    let (_folder, config) = folder();
    let stat =
        |arguments: &[&str]| tesk(&[&["storage", "stat", "--config", &config], arguments].concat());
    let shown = text(&stat(&["file:///mapped/a"]).stdout);
    assert!(shown.contains("type        file\n"), "{shown}");
    assert!(shown.contains("size        4\n"), "{shown}");
    let json = stat(&["--json", "file:///mapped/sub"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["type"], "directory");
    let missing = stat(&["file:///mapped/none?sig=s3cret"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(!text(&missing.stderr).contains("s3cret"), "{missing:?}");
}

#[test]
fn copies_go_there_and_back_and_a_failure_shows_no_secret() {
    let (folder, config) = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let cp =
        |arguments: &[&str]| tesk(&[&["storage", "cp", "--config", &config], arguments].concat());
    let there = cp(&["-r", &path("data/sub"), "file:///mapped/copy"]);
    assert!(
        text(&there.stdout).starts_with("1 file, 0 B in "),
        "{there:?}"
    );
    let across = cp(&[
        "-r",
        "file:///mapped/copy",
        &format!("file://{}", path("two")),
    ]);
    assert!(across.status.success(), "{across:?}");
    assert!(
        cp(&["-r", "file:///mapped", &path("back")])
            .status
            .success()
    );
    let names: Vec<_> = tree(&folder.path().join("back")).into_keys().collect();
    assert_eq!(names.len(), 7, "{names:?}");
    assert!(Path::new(&path("two/deep/b \u{1b}[2J")).is_file());
    assert!(cp(&["file:///mapped/a", &path("one")]).status.success());
    assert_eq!(std::fs::read_to_string(path("one")).unwrap(), "four");

    let failed = cp(&["file:///mapped/a", "nope://me:s3cret@host/x?sig=s3cret"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(
        said.contains("nope://host/x") && !said.contains("s3cret"),
        "{said}"
    );
    let directory = cp(&["file:///mapped/sub", &path("none")]);
    assert_eq!(directory.status.code(), Some(1), "{directory:?}");
    assert!(!Path::new(&path("none")).exists());
}
