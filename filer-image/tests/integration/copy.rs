use std::process::{Command, Output};

use super::pod::Pod;

fn copy(pod: &Pod, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_filer"))
        .arg("copy")
        .args(arguments)
        .arg("--config")
        .arg(pod.at("tesk.toml"))
        .current_dir(pod.at(""))
        .output()
        .unwrap()
}

#[test]
fn files_and_directories_travel_both_ways_and_between_storages() {
    let pod = Pod::new();
    std::fs::create_dir_all(pod.at("d/sub/empty")).unwrap();
    std::fs::write(pod.at("d/a b#?%"), "odd name").unwrap();
    std::fs::write(pod.at("d/sub/.x"), "").unwrap();
    let there = copy(&pod, &["-r", "d", &pod.url("one")]);
    assert!(there.status.success(), "{there:?}");
    let said = String::from_utf8_lossy(&there.stdout).into_owned();
    assert!(said.starts_with("2 files, 8 bytes, "), "{said}");
    assert!(
        copy(&pod, &["-r", &pod.url("one"), &pod.url("two")])
            .status
            .success()
    );
    let back = copy(&pod, &["-r", &pod.url("two"), "back"]);
    assert!(back.status.success(), "{back:?}");
    assert_eq!(
        std::fs::read_to_string(pod.at("back/a b#?%")).unwrap(),
        "odd name"
    );
    assert_eq!(std::fs::read_to_string(pod.at("back/sub/.x")).unwrap(), "");
    assert!(pod.at("back/sub/empty").is_dir());
    assert!(
        copy(&pod, &[&pod.url("two/sub/.x"), "file"])
            .status
            .success()
    );
    assert!(pod.at("file").is_file());
}

#[test]
fn a_failure_names_the_address_without_its_credentials() {
    let pod = Pod::new();
    for (from, says) in [
        (
            pod.url("missing").replace("file://", "file://me:s3cret@"),
            "missing",
        ),
        ("nope://me:s3cret@h/x".to_owned(), "nope://h/x"),
        ("missing".to_owned(), "missing"),
    ] {
        let failed = copy(&pod, &[&from, &pod.url("to")]);
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(1), "{from}");
        assert!(said.contains(says) && !said.contains("s3cret"), "{said}");
    }
    let failed = copy(&pod, &["a", "b"]);
    assert!(String::from_utf8_lossy(&failed.stderr).contains("one of the two must be a url"));
}

#[test]
fn without_a_configuration_it_copies_the_files_of_this_machine() {
    let pod = Pod::new();
    std::fs::write(pod.at("a"), "bytes").unwrap();
    std::os::unix::fs::symlink(pod.at("a"), pod.at("link")).unwrap();
    let url = |name| format!("file://{}", pod.at(name).display());
    for (from, to) in [("a".to_owned(), "b".to_owned()), (url("link"), url("c"))] {
        let done = Command::new(env!("CARGO_BIN_EXE_filer"))
            .args(["copy", &from, &to])
            .current_dir(pod.at(""))
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    for copy in ["b", "c"] {
        assert_eq!(std::fs::read_to_string(pod.at(copy)).unwrap(), "bytes");
    }
}
