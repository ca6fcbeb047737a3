use std::os::unix::fs::symlink;
use std::path::Path;

use tesk_core::scheduler::compute::Outcome;
use tesk_core::staging::Failure;
use tesk_core::time::Timestamp;
use tesk_filer::handover::{MAX_RECORD, Record, Seen, Step, Turn, Verdict};

use super::pod::{Container, Pod, exists, until};

const FIRST: Step = Step::Executor(0);

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

type Trap = (&'static str, fn(&Path));

/// All that a command could leave in its supervisor's directory, by name.
fn traps() -> Vec<Trap> {
    vec![
        ("symlink", |path| symlink("/etc/passwd", path).unwrap()),
        ("fifo", fifo),
        ("directory", |path| std::fs::create_dir(path).unwrap()),
        ("garbage", |path| {
            std::fs::write(path, "{\"version\":").unwrap();
        }),
        ("not text", |path| {
            std::fs::write(path, b"\xff\xfe").unwrap();
        }),
        ("empty", |path| std::fs::write(path, "").unwrap()),
        ("deep", |path| {
            std::fs::write(path, "[".repeat(1 << 20)).unwrap();
        }),
        ("huge", |path| {
            std::fs::File::create(path)
                .unwrap()
                .set_len(MAX_RECORD * 100)
                .unwrap();
        }),
        ("device", |path| symlink("/dev/zero", path).unwrap()),
    ]
}

#[test]
fn a_record_that_is_a_trap_is_a_failure_with_a_reason_and_never_a_hang() {
    for (name, set) in traps() {
        let pod = Pod::new();
        let turn = Turn::take(&pod.at("handover"), FIRST).unwrap();
        set(&pod.at("handover/executor-0/record"));
        assert_eq!(
            pod.seen(FIRST),
            Seen::Running,
            "{name}: the supervisor has the last word"
        );
        drop(turn);
        // Until it begins its program, a child of another test has the lock open as well.
        pod.until(FIRST, |seen| *seen != Seen::Running);
        let seen = pod.seen(FIRST);
        assert!(
            matches!(&seen, Seen::Died(why) if why.starts_with("its record")),
            "{name}: {seen:?}"
        );
    }
}

#[test]
fn a_lock_file_that_is_a_trap_is_a_failure_with_a_reason_and_never_a_hang() {
    for (name, set) in traps() {
        if !matches!(name, "symlink" | "fifo" | "directory" | "device") {
            continue;
        }
        let pod = Pod::new();
        std::fs::create_dir(pod.at("handover/executor-0")).unwrap();
        set(&pod.at("handover/executor-0/alive"));
        let seen = pod.seen(FIRST);
        assert!(
            matches!(&seen, Seen::Died(why) if why.starts_with("its alive")),
            "{name}: {seen:?}"
        );
    }
}

#[test]
fn a_step_directory_that_is_a_trap_is_a_failure() {
    for set in [|path: &Path| symlink("/", path).unwrap(), fifo] {
        let pod = Pod::new();
        set(&pod.at("handover/executor-0"));
        assert!(matches!(pod.seen(FIRST), Seen::Died(_)));
    }
}

#[test]
fn a_command_cannot_forge_its_own_record() {
    let mut pod = Pod::new();
    let record = pod.forge(FIRST, "done");
    let directory = pod.at("handover/executor-0");
    std::fs::remove_dir_all(&directory).unwrap();
    let script = format!(
        "printf '%s' '{record}' > {directory}/record; mkdir {directory}/x; touch forged; \
         while [ ! -e go ]; do sleep 0.02; done; exit 4",
        directory = directory.display()
    );
    pod.shell(&script);
    pod.shell("touch second");
    let containers = pod.start();
    until(|| exists(&pod.at("w/forged")));
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!exists(&pod.at("w/second")), "its turn has not come");
    std::fs::write(pod.at("w/go"), "").unwrap();
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 4, 125, 0]);
    assert_eq!(pod.report().outcome, Outcome::ExecutorError);
}

#[test]
fn a_command_that_takes_the_lock_file_away_gains_nothing() {
    let mut pod = Pod::new();
    let alive = pod.at("handover/executor-0/alive");
    pod.shell(&format!(
        "while [ ! -e go ]; do sleep 0.02; done; rm {}; kill -KILL $PPID",
        alive.display()
    ));
    pod.shell("touch second");
    let containers = pod.start();
    pod.until(FIRST, |seen| *seen == Seen::Running);
    // The second executor and the outputs have seen it.
    until(|| containers[2..].iter().all(|waits| waits.holds(&alive)));
    std::fs::write(pod.at("w/go"), "").unwrap();
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 137, 125, 0]);
    assert_eq!(pod.report().outcome, Outcome::ExecutorError);
}

#[test]
fn a_record_full_of_text_is_shortened_by_who_reads_it() {
    let mut pod = Pod::new();
    pod.shell("true");
    assert!(pod.prepare().status.success());
    pod.forge(Step::Inputs, "done");
    let mut record = pod.forge(FIRST, "failed");
    record["exit_code"] = 1.into();
    record["stdout"] = "x".repeat(1 << 20).into();
    record["notes"] = vec!["line\nforged: line".repeat(100); 1000].into();
    let path = pod.at("handover/executor-0/record");
    std::fs::write(path, record.to_string()).unwrap();
    assert_eq!(Container::start(pod.filer("outputs")).end().code(), 0);
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::ExecutorError);
    assert_eq!(
        report.executors[0].stdout.as_ref().unwrap().len(),
        10 * 1024
    );
    assert!(report.notes.len() <= 100);
    assert!(
        report
            .notes
            .iter()
            .all(|n| n.len() < 1100 && !n.contains('\n'))
    );
}

#[test]
fn a_record_with_more_failures_than_it_can_hold_is_shortened_and_keeps_a_definite_one() {
    let pod = Pod::new();
    let turn = Turn::take(&pod.at("handover"), FIRST).unwrap();
    let mut record = Record::new(Verdict::Done, Timestamp::now()).because("x".repeat(1 << 23));
    record.failures = (0..100)
        .map(|n| Failure {
            message: format!("{n} {}", "\u{1}".repeat(100_000)),
            retryable: n != 70,
        })
        .collect();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(turn.record(record)));
    let told = told.recv_timeout(std::time::Duration::from_mins(5));
    told.expect("it ends").unwrap();
    pod.until(FIRST, |seen| *seen != Seen::Running);
    let Seen::Over(record) = pod.seen(FIRST) else {
        panic!("{:?}", pod.seen(FIRST));
    };
    assert_eq!(record.failures.len(), 50);
    assert!(record.failures[0].message.starts_with("70 "));
    assert!(!record.failures[0].retryable);
}

#[test]
fn a_termination_message_that_is_a_trap_is_not_followed() {
    let mut pod = Pod::new();
    std::fs::write(pod.at("victim"), "unharmed").unwrap();
    let message = pod.at("message");
    pod.shell(&format!(
        "ln -s {} {}",
        pod.at("victim").display(),
        message.display()
    ));
    assert!(pod.prepare().status.success());
    pod.forge(Step::Inputs, "done");
    let mut exec = pod.exec(0);
    exec.arg("--termination-message").arg(&message);
    assert_eq!(Container::start(exec).end().code(), 0);
    assert_eq!(
        std::fs::read_to_string(pod.at("victim")).unwrap(),
        "unharmed"
    );
    // An honest one gets it.
    let mut pod = Pod::new();
    pod.shell("exit 7");
    assert!(pod.prepare().status.success());
    pod.forge(Step::Inputs, "done");
    let mut exec = pod.exec(0);
    exec.arg("--termination-message").arg(pod.at("message"));
    let container = Container::start(exec);
    assert_eq!(container.end().code(), 7);
    let message = std::fs::read_to_string(pod.at("message")).unwrap();
    assert!(message.contains("\"exit_code\":7"), "{message}");
}
