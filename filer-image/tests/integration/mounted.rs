use std::fs::{Permissions, create_dir_all, set_permissions, write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tesk_core::plan::PlannedInput;
use tesk_core::tes::FileType;

use super::pod::Pod;

/// A pod in whose storage there are files for everybody, and others.
fn pod() -> Pod {
    let pod = Pod::new();
    let store = pod.at("store");
    for (path, mode) in [
        ("file", 0o644),
        ("private", 0o640),
        ("tree/a", 0o444),
        ("tree/sub/b", 0o644),
        ("mixed/a", 0o644),
        ("mixed/sub/private", 0o600),
        ("linked/a", 0o644),
        ("closed/a", 0o644),
    ] {
        let path = store.join(path);
        create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, "content").unwrap();
        set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    for path in ["tree", "tree/sub", "mixed", "mixed/sub", "linked"] {
        set_permissions(store.join(path), Permissions::from_mode(0o755)).unwrap();
    }
    set_permissions(store.join("closed"), Permissions::from_mode(0o750)).unwrap();
    let link = |target: &str, name: &str| symlink(target, store.join(name)).unwrap();
    link("file", "link");
    link("/etc/passwd", "out");
    link("tree", "way");
    link("a", "linked/b");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        store.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o666),
        0,
    )
    .unwrap();
    pod
}

fn mounted<'a>(pod: &'a mut Pod, name: &str, kind: FileType) -> &'a mut PlannedInput {
    let (url, at) = (pod.url(name), pod.at("store").join(name));
    pod.input(&url, "in/a");
    let input = pod.plan.inputs.last_mut().unwrap();
    input.kind = kind;
    input.mounted = Some(at.to_str().unwrap().to_owned());
    input
}

#[test]
fn what_is_mounted_is_not_fetched_but_has_its_place() {
    let mut pod = pod();
    mounted(&mut pod, "file", FileType::File);
    mounted(&mut pod, "tree", FileType::Directory).path = pod.work("in/d");
    let url = pod.url("file");
    pod.input(&url, "copied");
    pod.shell("test -f in/a && ! test -s in/a && test -z \"$(ls in/d)\" && cat copied");
    let (codes, report) = pod.run();
    assert_eq!(codes, [0, 0, 0]);
    assert_eq!(report.executors[0].stdout.as_deref(), Some("content"));
}

#[test]
fn what_cannot_be_mounted_as_it_would_be_copied_keeps_the_pod_from_starting() {
    for (name, kind, expected) in [
        ("missing", FileType::File, "No such file"),
        ("missing", FileType::Directory, "No such file"),
        ("file/x", FileType::File, "Not a directory"),
        ("tree", FileType::File, "directory"),
        ("file", FileType::Directory, "Not a directory"),
        ("pipe", FileType::File, "pipe"),
        ("private", FileType::File, "not readable for every user"),
        ("closed", FileType::Directory, "not readable for every user"),
        (
            "mixed",
            FileType::Directory,
            "sub/private: is not readable for every user",
        ),
        ("link", FileType::File, "symbolic link"),
        ("out", FileType::File, "symbolic link"),
        ("way/a", FileType::File, "symbolic link"),
        ("way", FileType::Directory, "symbolic link"),
        ("linked", FileType::Directory, "b: "),
    ] {
        let mut pod = pod();
        mounted(&mut pod, name, kind);
        pod.shell("true");
        let prepared = pod.prepare();
        let reason = std::fs::read_to_string(pod.at("reason")).unwrap_or_default();
        assert_eq!(prepared.status.code(), Some(1), "{name}: {reason}");
        assert!(
            reason.starts_with("inputs[0] (") && reason.contains(expected),
            "{name}: {reason}"
        );
        assert!(!pod.at("handover/prepared").exists(), "{name}");
    }
}

#[test]
fn what_is_mounted_must_be_what_the_storage_has_there() {
    let mut pod = pod();
    let other = pod.at("store/tree/a").to_str().unwrap().to_owned();
    mounted(&mut pod, "file", FileType::File).mounted = Some(other);
    pod.shell("true");
    assert_eq!(pod.prepare().status.code(), Some(1));
    let reason = std::fs::read_to_string(pod.at("reason")).unwrap();
    assert!(reason.contains("does not have file://"), "{reason}");
}

#[test]
fn an_output_that_leads_to_what_is_mounted_is_not_delivered_empty() {
    let mut pod = pod();
    mounted(&mut pod, "file", FileType::File);
    pod.shell("ln -s in/a out");
    let url = pod.url("out.delivered");
    pod.output("out", &url);
    let (_, report) = pod.run();
    assert!(
        report.notes.iter().any(|note| note.contains("streamable")),
        "{report:?}"
    );
    assert!(!Path::new(&pod.at("store/out.delivered")).exists());
}
