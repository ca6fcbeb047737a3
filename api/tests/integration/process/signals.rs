//! Signals to `tesk`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{SERVE, command, has_sandbox, task_file, tesk};

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Whether that comes before long.
fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        let so = is_so();
        if so || begun.elapsed() > Duration::from_secs(20) {
            return so;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_cancels_the_task_of_run_but_for_the_end_of_a_terminal_that_it_outlives() {
    if !has_sandbox() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let file = task_file(&folder, &command(&["sleep", "100"]));
    for (hangup, signals) in [
        ("default", &[Signal::INT][..]),
        ("default", &[Signal::TERM][..]),
        ("default", &[Signal::HUP][..]),
        // As `timeout` does: one to the process, one to its group.
        ("default", &[Signal::INT, Signal::INT][..]),
        // As under `nohup`.
        ("ignore", &[Signal::HUP, Signal::INT][..]),
    ] {
        let mut child = Command::new("env")
            .arg(format!("--{hangup}-signal=HUP"))
            .arg(env!("CARGO_BIN_EXE_tesk"))
            .args(["run", "--runtime", "host"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("RUNNING") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "it never ran");
        }
        for signal in signals {
            send(&child, *signal);
            if (hangup, *signal) == ("ignore", Signal::HUP) {
                std::thread::sleep(Duration::from_millis(500));
                assert!(child.try_wait().unwrap().is_none(), "it was heard");
            }
        }
        let rest: Vec<_> = stdout.lines().map(Result::unwrap).collect();
        let last = rest.last().cloned().unwrap_or_default();
        assert!(last.ends_with("CANCELED"), "{hangup} {signals:?}: {rest:?}");
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn a_run_that_is_ended_while_it_starts_leaves_nothing() {
    let (folder, temporary) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    // It never says whether it works. No process of this test ever had it open.
    let podman = folder.path().join("podman");
    let make = r#"printf '#!/bin/sh\n: > "$0.asked"\nexec sleep 100\n' > "$0" && chmod +x "$0""#;
    let made = Command::new("sh").args(["-c", make]).arg(&podman).status();
    assert!(made.unwrap().success());
    let path = std::env::var("PATH").unwrap();
    let mut child = tesk()
        .args(["run", "--runtime", "podman"])
        .arg(task_file(&folder, &command(&["true"])))
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let asked = folder.path().join("podman.asked");
    let starts = soon(|| asked.exists());
    send(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(starts, "podman was never asked");
    let left: Vec<_> = temporary.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_server_listens_for_signals_before_it_says_that_it_is_ready() {
    if !has_sandbox() {
        return;
    }
    let data = TempDir::new().unwrap();
    // There is no room for what it says, so it gets no further than that.
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    writer.write_all(&vec![b'\n'; room]).unwrap();
    let mut child = tesk()
        .args(SERVE)
        .arg(data.path())
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let wanted = [Signal::HUP, Signal::INT, Signal::TERM]
        .iter()
        .fold(0, |all, signal| all | (1_u64 << (signal.as_raw() - 1)));
    let listens = soon(|| {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught & wanted == wanted
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(listens);
}
