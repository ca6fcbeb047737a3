use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tesk_core::scheduler::compute::Outcome;
use tesk_filer::handover::{Seen, Step};

use super::pod::{Container, End, Pod, exists, until};

/// Runs the only executor of `pod` by itself, its inputs being in place.
fn alone(pod: &Pod) -> End {
    Container::start(ready(pod)).end()
}

fn ready(pod: &Pod) -> Command {
    assert!(pod.prepare().status.success());
    pod.forge(Step::Inputs, "done");
    pod.exec(0)
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    for (argv, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 42"], 42),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["/"], 126),
        (&["sh", "-c", "kill -SEGV $$"], 139),
        (&["sh", "-c", "kill -KILL $$"], 137),
    ] {
        let mut pod = Pod::new();
        pod.executor(argv);
        assert_eq!(alone(&pod).code(), code, "{argv:?}");
        let Seen::Over(record) = pod.seen(Step::Executor(0)) else {
            panic!("no record");
        };
        assert_eq!(record.exit_code, Some(code));
    }
}

#[test]
fn arguments_arrive_as_they_were_written_and_streams_are_passed_on() {
    let mut pod = Pod::new();
    pod.executor(&[
        "printf",
        "[%s]",
        "",
        "a b",
        "$(X)",
        "$$",
        "\"'\\",
        "new\nline",
        "-c",
    ]);
    let end = alone(&pod);
    assert_eq!(end.stdout(), "[][a b][$(X)][$$][\"'\\][new\nline][-c]");
    let mut pod = Pod::new();
    pod.shell("echo to-stderr >&2");
    let end = alone(&pod);
    assert_eq!((end.stdout(), end.stderr()), ("", "to-stderr\n"));
}

#[test]
fn a_missing_standard_input_is_an_executor_error_that_says_so() {
    let mut pod = Pod::new();
    let missing = pod.work("missing");
    pod.shell("touch ran").stdin = Some(missing.clone());
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 1, 0]);
    assert_eq!(report.outcome, Outcome::ExecutorError);
    let said = format!("cannot read the standard input {missing}: there is no such file");
    assert!(
        report.executors[0].stderr.as_ref().unwrap().contains(&said),
        "{report:?}"
    );
    assert!(report.notes[0].contains(&said), "{report:?}");
    assert!(!exists(&pod.at("w/ran")));
}

#[test]
fn a_command_that_ignores_term_is_killed_before_the_supervisor_is() {
    let mut pod = Pod::new();
    pod.shell("trap '' TERM; touch ready; sleep 60; sleep 60");
    let container = Container::start(ready(&pod));
    until(|| exists(&pod.at("w/ready")));
    let begin = Instant::now();
    container.signal(Signal::TERM);
    assert_eq!(container.end().code(), 137);
    assert!(
        begin.elapsed() >= Duration::from_secs(1),
        "it has its grace time"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(matches!(pod.seen(Step::Executor(0)), Seen::Over(_)));
}

#[test]
fn other_signals_reach_the_command() {
    let mut pod = Pod::new();
    pod.shell("trap 'echo got it; exit 9' USR1; touch ready; while :; do sleep 0.02; done");
    let container = Container::start(ready(&pod));
    until(|| exists(&pod.at("w/ready")));
    container.signal(Signal::USR1);
    let end = container.end();
    assert_eq!((end.code(), end.stdout()), (9, "got it\n"));
}

#[test]
fn memory_does_not_grow_with_output() {
    let mut pod = Pod::new();
    let redirect = pod.work("out");
    let script = "head -c 50000000 /dev/zero | tr '\\0' x; grep VmHWM /proc/$PPID/status >&2";
    pod.shell(script).stdout = Some(redirect);
    let mut exec = ready(&pod);
    let status = exec
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(
        std::fs::metadata(pod.at("w/out")).unwrap().len(),
        50_000_000
    );
    let Seen::Over(record) = pod.seen(Step::Executor(0)) else {
        panic!("no record");
    };
    assert_eq!(record.stdout, "x".repeat(10 * 1024));
    let peak: u64 = record
        .stderr
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(peak < 40 * 1024, "{peak} KiB");
}

#[test]
fn as_pid_1_it_reaps_what_the_command_leaves_behind() {
    let in_namespace = |command: &mut Command| {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--pid",
            "--fork",
            "--user",
            "--map-root-user",
            "--mount-proc",
        ]);
        unshare
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        unshare
    };
    let possible = in_namespace(&mut Command::new("true")).output();
    if !possible
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("NOT TESTED: this machine forbids user namespaces: {possible:?}");
        return;
    }
    let mut pod = Pod::new();
    // Each `setsid` is orphaned at once, and ends soon after; one outlives the command.
    pod.shell(
        "cat /proc/1/comm; for i in 1 2 3 4 5 6 7 8; do \
             (setsid sh -c 'sleep 0.1; touch ended-$0; exit 3' $i &); done; \
         (setsid sleep 600 >/dev/null 2>&1 &); \
         until [ $(ls | grep -c ended) = 8 ]; do sleep 0.02; done; \
         n=0; while zombies=$(grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l); \
             [ $zombies != 0 ] && [ $n -lt 400 ]; do n=$((n + 1)); sleep 0.05; done; \
         echo $zombies; exit 5",
    );
    let end = Container::start(in_namespace(&mut ready(&pod))).end();
    assert_eq!(end.stdout(), "filer\n0\n", "{}", end.stderr());
    assert_eq!(end.code(), 5, "orphans do not change the exit code");
}
