use rustix::process::Signal;
use tesk_core::scheduler::compute::Outcome;
use tesk_filer::handover::{Seen, Step};

use super::pod::{Container, Pod, exists, until};

const FIRST: Step = Step::Executor(0);

/// Two executors, the first of which waits for a file. It ends when its directory is gone as well:
/// where its supervisor is killed, nothing else ends it.
fn pod() -> Pod {
    let mut pod = Pod::new();
    pod.shell("echo begun > out; while [ ! -e go ] && [ -e out ]; do sleep 0.02; done");
    pod.shell("echo second >> out");
    pod.output("out", &pod.url("out"));
    pod
}

#[test]
fn an_executors_supervisor_killed_at_work_is_an_executor_error() {
    let pod = pod();
    let mut containers = pod.start();
    until(|| exists(&pod.at("w/out")));
    let killed = containers.remove(1);
    killed.signal(Signal::KILL);
    assert_eq!(killed.end().code(), 137);
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 125, 0]);
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::ExecutorError);
    assert_eq!(report.executors.len(), 1);
    assert_eq!(report.executors[0].exit_code, 137);
    assert!(
        report.notes[0].starts_with("executor-0 died: "),
        "{report:?}"
    );
    assert_eq!(pod.stored("out"), "begun\n", "what there is is delivered");
    // In a pod its command dies with its container.
    std::fs::write(pod.at("w/go"), "").unwrap();
}

#[test]
fn the_death_of_a_supervisor_can_be_ignored_like_any_error() {
    let mut pod = pod();
    pod.plan.executors[0].ignore_error = true;
    let mut containers = pod.start();
    until(|| exists(&pod.at("w/out")));
    containers.remove(1).signal(Signal::KILL);
    for container in containers {
        container.end();
    }
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::Complete, "{report:?}");
    let codes: Vec<_> = report.executors.iter().map(|log| log.exit_code).collect();
    assert_eq!(codes, [137, 0]);
    assert_eq!(pod.stored("out"), "begun\nsecond\n");
    std::fs::write(pod.at("w/go"), "").unwrap();
}

#[test]
fn a_supervisor_killed_while_it_waits_for_its_turn_is_noticed_when_that_comes() {
    let pod = pod();
    let mut containers = pod.start();
    until(|| exists(&pod.at("w/out")));
    pod.until(Step::Executor(1), |seen| *seen == Seen::Running);
    containers.remove(2).signal(Signal::KILL);
    assert_eq!(pod.seen(FIRST), Seen::Running);
    std::fs::write(pod.at("w/go"), "").unwrap();
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 0, 0]);
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::ExecutorError);
    let codes: Vec<_> = report.executors.iter().map(|log| log.exit_code).collect();
    assert_eq!(codes, [0, 137]);
}

#[test]
fn inputs_killed_before_they_begin_are_waited_for_until_the_pod_is_told() {
    let pod = pod();
    assert!(pod.prepare().status.success());
    // Without it they do not begin.
    std::fs::remove_file(pod.at("handover/prepared")).unwrap();
    let executors = [pod.exec(0), pod.exec(1)].map(Container::start);
    let outputs = Container::start(pod.filer("outputs"));
    let inputs = Container::start(pod.filer("inputs"));
    inputs.signal(Signal::KILL);
    assert_eq!(inputs.end().code(), 137);
    assert_eq!(pod.seen(Step::Inputs), Seen::NotStarted);
    for step in [FIRST, Step::Executor(1), Step::Outputs] {
        pod.until(step, |seen| *seen == Seen::Running);
    }
    // Nobody waits for what never began, once told so: the scheduler sees its container.
    std::fs::write(pod.at("stop"), "inputs is gone").unwrap();
    assert_eq!(executors.map(|c| c.end().code()), [125, 125]);
    assert_eq!(outputs.end().code(), 0);
    assert_eq!(pod.report().outcome, Outcome::SystemError);
    assert!(!exists(&pod.at("w/out")));
}

#[test]
fn inputs_killed_while_a_source_is_silent_are_tried_again() {
    let mut pod = pod();
    // A server that takes the connection and says nothing.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", server.local_addr().unwrap());
    let mut config = std::fs::read_to_string(pod.at("tesk.toml")).unwrap();
    config.push_str("[[storage]]\ntype = \"http\"\nprefix = \"http://\"\n");
    std::fs::write(pod.at("tesk.toml"), config).unwrap();
    pod.input(&url, "in");
    let mut containers = pod.start();
    let connection = server.accept().unwrap();
    assert_eq!(pod.seen(Step::Inputs), Seen::Running);
    containers.remove(0).signal(Signal::KILL);
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [125, 125, 0]);
    let report = pod.report();
    assert_eq!(report.outcome, Outcome::Retry);
    assert!(report.notes[0].starts_with("inputs died: "), "{report:?}");
    drop(connection);
}

#[test]
fn outputs_killed_leave_no_report_and_a_second_look_sees_the_death() {
    let pod = pod();
    let mut containers = pod.start();
    pod.until(Step::Outputs, |seen| *seen == Seen::Running);
    containers.remove(3).signal(Signal::KILL);
    std::fs::write(pod.at("w/go"), "").unwrap();
    let codes: Vec<_> = containers.into_iter().map(|c| c.end().code()).collect();
    assert_eq!(codes, [0, 0, 0], "the others do not depend on it");
    assert!(matches!(pod.seen(Step::Outputs), Seen::Died(_)));
    assert!(!exists(&pod.at("report.json")));
}

#[test]
fn a_pod_told_to_end_ends_everywhere_at_once() {
    let pod = pod();
    let mut containers = pod.start();
    until(|| exists(&pod.at("w/out")));
    for step in [Step::Executor(1), Step::Outputs] {
        pod.until(step, |seen| *seen == Seen::Running);
    }
    // Those that wait come first: else they might see the death of the others before.
    for container in containers.drain(1..).rev() {
        container.signal(Signal::TERM);
        assert_eq!(container.end().code(), 143);
    }
    assert_eq!(containers.remove(0).end().code(), 0);
    assert!(
        !exists(&pod.at("store/out")),
        "nothing is delivered after a cancel"
    );
}
