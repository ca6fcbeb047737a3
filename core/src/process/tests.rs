use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use super::capture::Tail;
use super::*;

const LONG: Duration = Duration::from_secs(20);

fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(|s| (*s).to_owned()).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        tail: 10 * 1024,
        ..Command::default()
    }
}

fn shell(script: &str) -> Command {
    command(&["sh", "-c", script])
}

async fn ended(command: Command) -> Ended {
    let run = run(command, CancellationToken::new(), LONG);
    tokio::time::timeout(LONG, run).await.expect("must end")
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Starts a command that says `ready`, and waits until it has.
async fn ready(
    mut command: Command,
    stop: &CancellationToken,
    grace: Duration,
) -> tokio::task::JoinHandle<Ended> {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    command.stdout = Some(out.clone());
    let running = tokio::spawn(run(command, stop.clone(), grace));
    until("it is ready", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text == "ready\n")
    })
    .await;
    running
}

/// Whether a process runs; one that is only to be reaped does not.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// Another process writes it: while a file is open for writing here, a child that is just being
/// started has it open too, and nobody can run it.
fn script(directory: &Path, name: &str, content: &str, mode: u32) -> String {
    let path = directory.join(name);
    let written = std::process::Command::new("sh")
        .args(["-c", r#"printf %s "$1" > "$0""#])
        .arg(&path)
        .arg(content)
        .status();
    assert!(written.unwrap().success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn both_streams_and_the_exit_code_are_kept_apart() {
    let ended = ended(shell("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!((ended.exit_code, ended.note), (3, None));
    assert!(ended.started <= ended.ended);
}

#[tokio::test]
async fn arguments_arrive_as_they_were_written() {
    let odd = ["", "a b", "$(X)", "$$", "\"'", "new\nline", "*"];
    let argv = [&["printf", "[%s]"], &odd[..]].concat();
    let ended = ended(command(&argv)).await;
    assert_eq!(ended.stdout, "[][a b][$(X)][$$][\"'][new\nline][*]");
}

#[tokio::test]
async fn the_environment_is_exactly_the_given_one() {
    let mut command = command(&["env"]);
    command.env.push(("A".into(), "$(B) $$".into()));
    assert_eq!(
        ended(command).await.stdout,
        "A=$(B) $$\nPATH=/usr/bin:/bin\n"
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_gives_127() {
    for argv in [
        &["no-such-program"][..],
        &["/no/such/program"],
        &["/etc/passwd/x"],
        &[""],
        &[],
    ] {
        let ended = ended(command(argv)).await;
        assert_eq!(ended.exit_code, 127, "{argv:?}");
        assert!(ended.stderr.starts_with("tesk: "), "{}", ended.stderr);
    }
    let directory = tempfile::tempdir().unwrap();
    let program = script(directory.path(), "x", "#!/no/interpreter\n", 0o755);
    assert_eq!(ended(command(&[&program])).await.exit_code, 127);
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_gives_126() {
    let directory = tempfile::tempdir().unwrap();
    let data = script(directory.path(), "data", "#!/bin/sh\n", 0o644);
    let format = script(directory.path(), "format", "\x01\x02", 0o755);
    for program in [&data, &format, directory.path().to_str().unwrap()] {
        assert_eq!(ended(command(&[program])).await.exit_code, 126, "{program}");
    }
    // On the way through PATH too, unless a later directory has a better one.
    let mut named = command(&["data"]);
    named.env = vec![("PATH".into(), directory.path().into())];
    assert_eq!(ended(named).await.exit_code, 126);
    script(directory.path(), "true", "", 0o644);
    let mut named = command(&["true"]);
    named.env = vec![(
        "PATH".into(),
        format!("{}:/bin", directory.path().display()).into(),
    )];
    assert_eq!(ended(named).await.exit_code, 0);
}

#[tokio::test]
async fn a_relative_program_is_looked_for_in_the_working_directory() {
    let directory = tempfile::tempdir().unwrap();
    script(directory.path(), "x", "#!/bin/sh\npwd\n", 0o755);
    let mut relative = command(&["./x"]);
    relative.workdir = Some(directory.path().to_owned());
    let expected = format!("{}\n", directory.path().display());
    assert_eq!(ended(relative).await.stdout, expected);
    let mut empty_entry = command(&["x"]);
    empty_entry.workdir = Some(directory.path().to_owned());
    empty_entry.env = vec![("PATH".into(), "/nowhere:".into())];
    assert_eq!(ended(empty_entry).await.stdout, expected);
}

#[tokio::test]
async fn a_signal_gives_128_and_its_number() {
    assert_eq!(ended(shell("kill -KILL $$")).await.exit_code, 137);
    assert_eq!(ended(shell("kill -TERM $$")).await.exit_code, 143);
}

#[tokio::test]
async fn a_missing_working_directory_is_made_with_its_parents() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(&["pwd"]);
    let workdir = directory.path().join("a/b");
    command.workdir = Some(workdir.clone());
    assert_eq!(
        ended(command).await.stdout,
        format!("{}\n", workdir.display())
    );
}

#[tokio::test]
async fn a_link_of_the_kernels_own_leads_nowhere() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let open = File::open(outside.path()).unwrap();
    let fd = format!("/proc/self/fd/{}", open.as_raw_fd());
    let link = inside.path().join("link");
    std::os::unix::fs::symlink(&fd, &link).unwrap();
    for way in [PathBuf::from(fd), link] {
        let change: [fn(&mut Command, &Path); 5] = [
            |command, way| command.workdir = Some(way.to_owned()),
            |command, way| command.workdir = Some(way.join("new/deep")),
            |command, way| command.stdin = Some(way.join("secret")),
            |command, way| command.stdout = Some(way.join("out")),
            |command, way| command.stderr = Some(way.join("new/err")),
        ];
        for (index, change) in change.into_iter().enumerate() {
            let mut command = command(&["cat", "secret"]);
            change(&mut command, &way);
            let ended = ended(command.clone()).await;
            assert_eq!((ended.exit_code, ended.stdout.as_str()), (1, ""), "{index}");
            assert!(ended.stderr.starts_with("tesk: cannot "), "{index}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        }
    }
    let mut trusting = command(&["cat", "secret"]);
    trusting.workdir = Some(inside.path().join("link"));
    trusting.magic_links = true;
    assert_eq!(ended(trusting).await.stdout, "secret");
}

#[tokio::test]
async fn without_a_standard_input_the_command_reads_nothing() {
    assert_eq!(ended(command(&["cat"])).await.stdout, "");
    let directory = tempfile::tempdir().unwrap();
    let mut cat = command(&["cat"]);
    cat.stdin = Some(script(directory.path(), "in", "hello", 0o644).into());
    assert_eq!(ended(cat).await.stdout, "hello");
}

#[tokio::test]
async fn a_missing_standard_input_is_said_clearly_and_nothing_starts() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o600),
        0,
    )
    .unwrap();
    for stdin in [
        directory.path().join("nothing"),
        directory.path().to_owned(),
        pipe,
    ] {
        let mut touch = command(&["touch", mark.to_str().unwrap()]);
        touch.stdin = Some(stdin.clone());
        let ended = ended(touch).await;
        assert_eq!(ended.exit_code, 1);
        let expected = format!("cannot read the standard input {}", stdin.display());
        assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
        assert!(ended.note.unwrap().contains(&expected));
        assert!(!mark.exists());
    }
}

#[tokio::test]
async fn redirects_are_truncated_and_their_parents_made() {
    let directory = tempfile::tempdir().unwrap();
    let (out, err) = (
        directory.path().join("a/b/out"),
        directory.path().join("err"),
    );
    std::fs::write(&err, "what was there before").unwrap();
    let mut command = shell("echo out; echo err >&2");
    (command.stdout, command.stderr) = (Some(out.clone()), Some(err.clone()));
    let ended = ended(command).await;
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(std::fs::read_to_string(out).unwrap(), "out\n");
    assert_eq!(std::fs::read_to_string(err).unwrap(), "err\n");
}

#[tokio::test]
async fn one_file_for_both_streams_gets_both() {
    let directory = tempfile::tempdir().unwrap();
    let (both, other_name) = (
        directory.path().join("both"),
        directory.path().join("other"),
    );
    std::fs::write(&both, "").unwrap();
    std::fs::hard_link(&both, &other_name).unwrap();
    for err in [&both, &other_name] {
        let mut command =
            shell("i=0; while [ $i -lt 500 ]; do echo out; echo err >&2; i=$((i+1)); done");
        (command.stdout, command.stderr) = (Some(both.clone()), Some(err.clone()));
        assert_eq!(ended(command).await.exit_code, 0);
        let text = std::fs::read_to_string(&both).unwrap();
        assert_eq!(text.lines().filter(|l| *l == "out").count(), 500);
        assert_eq!(text.lines().filter(|l| *l == "err").count(), 500);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_but_never_blocks_the_command() {
    let mut command = shell("head -c 3000000 /dev/zero | tr '\\0' x; echo done >&2");
    command.stdout = Some("/dev/full".into());
    let ended = ended(command).await;
    assert_eq!(ended.exit_code, 0);
    assert_eq!(
        (ended.stdout.len(), ended.stderr.as_str()),
        (10 * 1024, "done\n")
    );
    let unwritten = ended.unwritten.unwrap();
    assert!(unwritten.what.contains("/dev/full"), "{unwritten:?}");
    assert_eq!(unwritten.kind, std::io::ErrorKind::StorageFull);
}

#[tokio::test]
async fn a_command_that_ignores_term_is_killed_after_the_grace_time() {
    let stop = CancellationToken::new();
    let stubborn = shell("trap '' TERM; echo ready; sleep 60; sleep 60");
    let running = ready(stubborn, &stop, Duration::from_millis(300)).await;
    let begin = Instant::now();
    stop.cancel();
    let ended = tokio::time::timeout(LONG, running).await.unwrap().unwrap();
    assert_eq!((ended.exit_code, ended.stdout.as_str()), (137, "ready\n"));
    assert!(begin.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_command_that_heeds_term_can_finish_its_work() {
    let stop = CancellationToken::new();
    let polite = shell("trap 'echo bye; exit 5' TERM; echo ready; sleep 60 & wait");
    let running = ready(polite, &stop, LONG).await;
    stop.cancel();
    let ended = tokio::time::timeout(LONG, running).await.unwrap().unwrap();
    let said = (ended.exit_code, ended.stdout.as_str());
    assert_eq!(said, (5, "ready\nbye\n"));
}

#[tokio::test]
async fn a_command_stopped_before_it_began_does_not_begin() {
    let stop = CancellationToken::new();
    stop.cancel();
    let ended = run(shell("echo begun"), stop, LONG).await;
    assert_eq!((ended.exit_code, ended.stdout.as_str()), (143, ""));
}

#[tokio::test]
async fn the_time_limit_ends_a_command_and_says_so() {
    let mut command = command(&["sleep", "60"]);
    command.time_limit = Some(Duration::from_millis(200));
    let ended = ended(command).await;
    assert_eq!(ended.exit_code, 143);
    assert_eq!(ended.note.unwrap(), "ended by its time limit of 0.2 s");
}

#[tokio::test]
async fn what_the_command_leaves_in_its_group_is_killed() {
    let ended = ended(shell("sleep 60 & echo $!")).await;
    assert_eq!(ended.note, None, "its output is closed with it");
    // Its files are closed before it is quite gone.
    until("it is gone", || !lives(ended.stdout.trim())).await;
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_open_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let mark = mark.display();
    // It outlives what `ended` waits for.
    let ended = ended(shell(&format!(
        "setsid sh -c 'touch {mark}; sleep 60' & \
         until [ -e {mark} ]; do sleep 0.01; done; echo before"
    )))
    .await;
    assert_eq!((ended.exit_code, ended.stdout.as_str()), (0, "before\n"));
    assert!(ended.note.unwrap().contains("held its output open"));
}

#[tokio::test]
async fn dropping_a_run_kills_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let long = shell(&format!("sleep 60 & echo $$ $! > {}; wait", file.display()));
    let mut pids = String::new();
    let runs = until("it runs", || {
        pids = std::fs::read_to_string(&file).unwrap_or_default();
        pids.ends_with('\n')
    });
    tokio::select! {
        ended = run(long, CancellationToken::new(), LONG) => panic!("{ended:?}"),
        () = runs => {}
    }
    until("it is gone", || !pids.split_whitespace().any(lives)).await;
}

#[tokio::test]
async fn many_commands_at_once_each_get_their_own_exit_code() {
    let runs: Vec<_> = (0..24)
        .map(|n| tokio::spawn(ended(shell(&format!("echo {n}; exit {n}")))))
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        let ended = run.await.unwrap();
        assert_eq!(ended.exit_code, n as i32);
        assert_eq!(ended.stdout, format!("{n}\n"));
    }
}

#[tokio::test]
async fn huge_output_is_drained_and_only_its_end_kept() {
    let mut command = shell("head -c 20000000 /dev/zero | tr '\\0' x; echo end");
    command.tail = 1000;
    let ended = ended(command).await;
    assert_eq!(ended.exit_code, 0);
    assert_eq!(ended.stdout.len(), 1000);
    assert!(ended.stdout.ends_with("xxxend\n"));
    let note = "of 20000004 bytes of its standard output the log has the last 1000";
    assert_eq!(ended.note.as_deref(), Some(note));
}

#[tokio::test]
async fn streams_go_into_one_file_that_does_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output");
    let append = || OpenOptions::new().append(true).create(true).open(&path);
    let mut command = shell(&format!(
        "echo out; until grep -q out {}; do sleep 0.01; done; echo err >&2",
        path.display()
    ));
    command.echo = Echo::File(Arc::new(append().unwrap()));
    assert_eq!(ended(command).await.stdout, "out\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\nerr\n");

    let mut command = shell("head -c 20000000 /dev/zero | tr '\\0' x; echo end");
    command.echo = Echo::File(Arc::new(append().unwrap()));
    ended(command).await;
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept.ends_with("end\n"));
    assert!((kept.len() as u64) < ECHO_SIZE, "{}", kept.len());
}

#[test]
fn a_tail_does_not_grow_with_what_it_is_given() {
    let mut tail = Tail::new(1000);
    let piece = vec![b'x'; 64 << 10];
    for _ in 0..3200 {
        tail.push(&piece);
    }
    let room = tail.bytes.capacity();
    assert!(room < 1 << 20, "{room}");
    assert_eq!(tail.into_text().len(), 1000);
}

#[test]
fn a_tail_begins_with_a_whole_character_and_replaces_what_is_not_text() {
    let text = |keep, pushes: &[&[u8]]| {
        let mut tail = Tail::new(keep);
        for bytes in pushes {
            tail.push(bytes);
        }
        tail.into_text()
    };
    assert_eq!(text(4, &["aé€".as_bytes()]), "€");
    assert_eq!(text(5, &["aé€".as_bytes()]), "é€");
    assert_eq!(text(100, &[b"a\xffb"]), "a\u{fffd}b");
    // A character cut in two by the pipe is whole again.
    assert_eq!(text(100, &[b"\xe2\x82", b"\xac"]), "€");
    // What was not cut keeps its bad first byte, and no text is longer than asked for.
    assert_eq!(text(3, &[b"\x80"]), "\u{fffd}");
    assert_eq!(text(3, &[b"\x80\x80\x80"]), "\u{fffd}");
    assert_eq!(text(0, &[b"abc"]), "");
}
