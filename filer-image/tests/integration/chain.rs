use std::os::unix::fs::{PermissionsExt, symlink};

use tesk_core::plan::{OutputSource, PlannedOutput};
use tesk_core::scheduler::compute::Outcome;
use tesk_core::staging::report;
use tesk_filer::handover::{Seen, Step};

use super::pod::{Container, Pod, exists, until};

#[test]
fn inputs_executors_and_outputs_follow_each_other_to_a_report() {
    let mut pod = Pod::new();
    std::fs::write(pod.at("store/in"), "hello").unwrap();
    pod.input(&pod.url("in"), "a/in");
    let script = "tr a-z A-Z < a/in > b; echo out; echo err >&2";
    pod.shell(script).env.insert("A".into(), "$(B) $$".into());
    let (from, to) = (pod.work("b"), pod.work("logs/c"));
    let second = pod.shell("printf '%s ' \"$0\" \"$A\"; cat");
    second.command.push("$(X)".into());
    second.env.insert("A".into(), "$(B) $$".into());
    (second.stdin, second.stdout) = (Some(from), Some(to));
    pod.output("logs/c", &pod.url("deep/c"));
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 0, 0, 0]);
    assert_eq!(report.outcome, Outcome::Complete, "{report:?}");
    assert_eq!(pod.stored("deep/c"), "$(X) $(B) $$ HELLO");
    assert_eq!(report.executors.len(), 2);
    let log = &report.executors[0];
    assert_eq!(log.stdout.as_deref(), Some("out\n"));
    assert_eq!(log.stderr.as_deref(), Some("err\n"));
    let log = &report.executors[1];
    assert_eq!(log.stdout.as_deref(), Some("$(X) $(B) $$ HELLO"));
    assert!(log.start_time >= report.executors[0].end_time);
    assert_eq!(report.outputs.len(), 1);
    assert_eq!(report.outputs[0].size_bytes, 18);
    assert_eq!(report.outputs[0].path, pod.work("logs/c"));
    assert_eq!(report.notes, [] as [String; 0]);
    assert!(report.started <= report.executors[0].start_time.unwrap());
}

#[test]
fn a_missing_input_ends_the_task_before_any_executor() {
    let mut pod = Pod::new();
    pod.input(&pod.url("missing"), "in");
    pod.shell("touch ran");
    pod.shell("touch ran");
    pod.output("ran", &pod.url("ran"));
    let (codes, report) = pod.run();
    assert_eq!(codes, [1, 125, 125, 0]);
    assert_eq!(report.outcome, Outcome::SystemError);
    assert!(
        report.notes[0].starts_with("inputs: inputs[0]"),
        "{report:?}"
    );
    assert_eq!((report.executors.len(), report.outputs.len()), (0, 0));
    assert!(!exists(&pod.at("w/ran")));
}

#[test]
fn a_failed_executor_ends_the_chain_but_outputs_are_delivered() {
    let mut pod = Pod::new();
    pod.shell("echo partial > out; exit 3");
    pod.shell("touch second");
    pod.output("out", &pod.url("out"));
    pod.output("missing", &pod.url("missing"));
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 3, 125, 0]);
    assert_eq!(report.outcome, Outcome::ExecutorError);
    assert_eq!(report.executors.len(), 1);
    assert_eq!(report.executors[0].exit_code, 3);
    assert_eq!(pod.stored("out"), "partial\n");
    assert!(
        report.notes.iter().any(|n| n.contains("does not exist")),
        "{report:?}"
    );
    assert!(!exists(&pod.at("w/second")));
}

#[test]
fn an_ignored_error_lets_the_task_go_on_to_complete() {
    let mut pod = Pod::new();
    pod.executor(&["no-such-program"]).ignore_error = true;
    pod.shell("echo went on > out");
    pod.output("out", &pod.url("out"));
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 127, 0, 0]);
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(report.executors[0].exit_code, 127);
    assert_eq!(pod.stored("out"), "went on\n");
}

#[test]
fn a_missing_output_of_a_good_executor_is_a_system_error() {
    let mut pod = Pod::new();
    pod.shell("true");
    pod.output("none", &pod.url("none"));
    assert_eq!(pod.run().1.outcome, Outcome::SystemError);
}

#[test]
fn an_output_that_could_only_partly_be_collected_is_a_system_error() {
    let mut pod = Pod::new();
    pod.shell("true");
    let beside = pod.at("beside");
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(beside.join("a"), "good").unwrap();
    std::fs::write(beside.join("b"), "never seen").unwrap();
    let collected = pod.at("collected");
    // In the way of one of the two.
    std::fs::create_dir_all(collected.join("b")).unwrap();
    let url = pod.url("d");
    pod.plan.outputs.push(PlannedOutput {
        index: 0,
        url,
        from: OutputSource::Directory(beside.to_str().unwrap().into()),
        collected_at: Some(collected.to_str().unwrap().into()),
    });
    let (_, report) = pod.run();
    assert_eq!(report.outcome, Outcome::SystemError, "{report:?}");
    assert_eq!(pod.stored("d/a"), "good");
    let said = format!("outputs[0]: {}/b is not collected", beside.display());
    assert!(
        report.notes.iter().any(|note| note.starts_with(&said)),
        "{report:?}"
    );
}

#[test]
fn output_that_does_not_fit_its_file_is_a_system_error_and_no_executor_reads_half_of_it() {
    let mut pod = Pod::new();
    let executor = pod.shell("echo much");
    executor.stdout = Some("/dev/full".into());
    executor.ignore_error = true;
    pod.shell("touch ran");
    let (_, report) = pod.run();
    assert_eq!(report.outcome, Outcome::SystemError, "{report:?}");
    assert_eq!(report.executors.len(), 1);
    assert_eq!(report.executors[0].exit_code, 0);
    let said = |note: &String| note.contains("/dev/full: ") && note.contains("no storage space");
    assert!(report.notes.iter().any(said), "{report:?}");
    assert!(!exists(&pod.at("w/ran")));
    // A failure of its own stays one.
    let mut pod = Pod::new();
    pod.shell("echo much; exit 3").stdout = Some("/dev/full".into());
    let (_, report) = pod.run();
    assert_eq!(report.outcome, Outcome::ExecutorError, "{report:?}");
    assert!(report.notes.iter().any(said), "{report:?}");
}

#[test]
fn a_symlink_to_a_secret_of_the_filer_is_not_delivered() {
    let mut pod = Pod::new();
    std::fs::create_dir(pod.at("secret")).unwrap();
    std::fs::write(pod.at("secret/key"), "of the operator").unwrap();
    symlink(pod.at("secret"), pod.at("w/through")).unwrap();
    pod.shell("ln -s /etc/shadow out; ln -s ../secret/key key");
    for name in ["out", "key", "through/key"] {
        pod.output(name, &pod.url(name));
    }
    let (_, report) = pod.run();
    assert_eq!(report.outcome, Outcome::SystemError);
    assert_eq!(
        (report.outputs.len(), report.notes.len()),
        (0, 3),
        "{report:?}"
    );
    assert!(std::fs::read_dir(pod.at("store")).unwrap().next().is_none());
}

#[test]
fn executors_see_nothing_of_urls_and_contents() {
    let mut pod = Pod::new();
    std::fs::write(pod.at("store/in"), "").unwrap();
    pod.input(&pod.url("in"), "in");
    pod.shell("true");
    pod.output("in", "ftp://me:s3cret@h/x");
    assert!(pod.prepare().status.success());
    let shown = std::fs::read_to_string(pod.at("bin/plan.json")).unwrap();
    assert!(
        !shown.contains("s3cret") && !shown.contains("store"),
        "{shown}"
    );
    let mode = |name: &str| {
        std::fs::metadata(pod.at(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("bin/filer") & 0o7777, 0o755);
    assert_eq!(mode("handover/executor-0") & 0o7777, 0o777);
}

#[test]
fn preparing_says_why_it_failed_where_it_can_be_read() {
    let mut pod = Pod::new();
    std::fs::write(pod.at("file"), "").unwrap();
    let below_a_file = pod.at("file/below").to_str().unwrap().to_owned();
    pod.plan.directories.push(below_a_file.clone());
    assert_eq!(pod.prepare().status.code(), Some(1));
    let reason = std::fs::read_to_string(pod.at("reason")).unwrap();
    assert!(reason.contains(&below_a_file), "{reason}");
    pod.plan.version = 99;
    assert_eq!(pod.prepare().status.code(), Some(1));
    let reason = std::fs::read_to_string(pod.at("reason")).unwrap();
    assert!(reason.contains("a plan of version 99"), "{reason}");
}

#[test]
fn the_stop_file_ends_the_waiting_for_an_executor_that_never_starts() {
    let mut pod = Pod::new();
    pod.shell("echo first > out");
    pod.shell("true");
    pod.shell("true");
    pod.output("out", &pod.url("out"));
    assert!(pod.prepare().status.success());
    // The container of executor 1 is not there at all: its image cannot be pulled.
    let containers = [
        pod.filer("inputs"),
        pod.exec(0),
        pod.exec(2),
        pod.filer("outputs"),
    ];
    let containers = containers.map(Container::start);
    until(|| exists(&pod.at("w/out")));
    std::fs::write(pod.at("stop"), "image x cannot be pulled\n").unwrap();
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 0, 125, 0]);
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::SystemError);
    assert_eq!(
        report.notes,
        ["executor-1 did not start: image x cannot be pulled"]
    );
    assert_eq!(report.executors.len(), 1);
    assert_eq!(pod.stored("out"), "first\n");
}

#[test]
fn an_executor_that_comes_after_the_stop_runs_nothing() {
    let mut pod = Pod::new();
    pod.shell("true");
    pod.shell("touch ran");
    assert!(pod.prepare().status.success());
    pod.forge(Step::Inputs, "done");
    pod.forge(Step::Executor(0), "done");
    // Meanwhile outputs are delivered: nobody waited for it.
    std::fs::write(pod.at("stop"), "image x cannot be pulled").unwrap();
    assert_eq!(Container::start(pod.exec(1)).end().code(), 125);
    assert!(!exists(&pod.at("w/ran")));
    let Seen::Over(record) = pod.seen(Step::Executor(1)) else {
        panic!("{:?}", pod.seen(Step::Executor(1)));
    };
    let reason = record.reason.as_deref();
    assert_eq!(reason, Some("stopped: image x cannot be pulled"));
}

#[test]
fn a_report_travels_in_the_termination_message_or_in_the_log() {
    for (room, in_log) in [("4096", false), ("200", true)] {
        let mut pod = Pod::new();
        pod.shell("seq 100 | sha256sum");
        assert!(pod.prepare().status.success());
        let mut outputs = pod.filer("outputs");
        outputs.arg("--termination-message").arg(pod.at("message"));
        outputs.args(["--termination-room", room]);
        let outputs = Container::start(outputs);
        let others = [pod.filer("inputs"), pod.exec(0)].map(Container::start);
        for other in others {
            assert_eq!(other.end().code(), 0);
        }
        let end = outputs.end();
        assert_eq!(end.code(), 0);
        let message = std::fs::read_to_string(pod.at("message")).unwrap();
        assert!(message.len() <= room.parse().unwrap(), "{message}");
        assert_eq!(report::unpack(&message, None).is_err(), in_log);
        assert_eq!(
            report::unpack(&message, Some(end.stdout())),
            Ok(pod.report())
        );
    }
}

#[test]
fn no_step_runs_twice() {
    let mut pod = Pod::new();
    pod.shell("echo ran >> runs");
    pod.run();
    let again = Container::start(pod.exec(0)).end();
    assert_eq!(again.code(), 125);
    assert!(
        again.stderr().contains("has begun before"),
        "{}",
        again.stderr()
    );
    assert_eq!(std::fs::read_to_string(pod.at("w/runs")).unwrap(), "ran\n");
}
