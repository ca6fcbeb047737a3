//! Which sources and targets are let in.

use super::*;

#[test]
fn content_wins_over_a_url_that_is_not_even_read() {
    for url in [json!("nonsense://x"), json!(5), json!(["\0"])] {
        let echo = echo(json!({"inputs": [{"path": "/in", "content": "x", "url": url}]}));
        assert_eq!(echo["inputs"][0]["content"], "x");
    }
    let masked = accepted(input(json!({"content": "x", "url": "ftp://u:secret@h/"})));
    assert!(masked.secrets.0.is_empty());
    assert_eq!(
        masked.task.inputs.unwrap()[0].url.as_deref(),
        Some("ftp://u:***@h/")
    );
    assert_eq!(
        breach(input(json!({"content": "x", "type": "DIRECTORY"}))),
        "inputs[0].content: a DIRECTORY cannot have content"
    );
}

#[test]
fn empty_content_is_an_empty_file_or_gives_way_to_the_url() {
    assert_eq!(
        echo(json!({"inputs": [{"path": "/in", "content": ""}]})),
        json!({"inputs": [{"path": "/in", "type": "FILE", "content": ""}]})
    );
    accepted(input(json!({"content": "", "type": "DIRECTORY"})));
    assert_eq!(
        breach(input(json!({"content": "", "url": "x://h/"}))),
        "inputs[0].url: x://h/ has another scheme; this server serves file, ftp, https, s3"
    );
    assert_eq!(
        breach(json!({"inputs": [{"path": "/in"}]})),
        "inputs[0].url: missing"
    );
}

#[test]
fn a_scheme_that_is_not_served_is_refused_and_those_that_are_listed() {
    for url in ["gopher://h/x", "_:uuid", "rel/path", "mailto:x"] {
        let breach = breach(input(json!({ "url": url })));
        assert!(
            breach.ends_with("this server serves file, ftp, https, s3"),
            "{breach}"
        );
    }
    accepted(input(json!({"url": "S3://no-such-bucket/k"})));
    accepted(input(
        json!({"url": "HTTPS://any.example.org:8443/k?sig=1"}),
    ));
}

#[test]
fn a_refused_url_is_named_without_what_is_secret() {
    for (url, said) in [
        (
            "gopher://u:s3cret@h/x?sig=s3cret",
            "gopher://h/x has another ",
        ),
        // A slash in a password should have been escaped.
        ("gopher://u:a/s3cret@h/x", "gopher://… has another scheme; "),
        (
            "/home/x",
            "file:///home/x is outside of what this server serves: ",
        ),
    ] {
        let breach = breach(input(json!({ "url": url })));
        let said = format!("inputs[0].url: {said}");
        assert!(breach.starts_with(&said), "{breach}");
        assert!(!breach.contains("s3cret"), "{breach}");
    }
    let long = format!("gopher://h/{}", "x".repeat(5000));
    let breach = breach(input(json!({ "url": long })));
    assert!(breach.contains("xxx… has another scheme"), "{breach}");
    assert!(breach.len() < 250, "{breach}");
}

#[test]
fn where_no_files_are_served_the_refusal_says_what_is_needed() {
    let rules = Rules {
        prefixes: vec![rule("https://", true, false)],
        ..rules()
    };
    let refused = accept(
        &task(input(json!({"url": "file:///home/ada/x.txt"}))),
        &rules,
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "inputs[0].url: file:///home/ada/x.txt has another scheme; this server serves https; \
         file: urls need a pvc storage, or `--allow-path DIR`"
    );
}

#[test]
fn a_file_url_stays_within_the_configured_directories() {
    for url in [
        "/data/x",
        "file:///data/x",
        "file://localhost/data/x",
        "/data/a/../b",
        "/data/./x",
        "FILE:///data//x",
        "/data/%2e%2e/x",
        "/data",
    ] {
        accepted(input(json!({ "url": url })));
    }
    for url in [
        "/data2/x",
        "/dat",
        "/",
        "/data/../etc/passwd",
        "file:///data/%2e%2e/etc/passwd",
        "file:///data/..%2fetc/passwd",
        "file:///data/../data2/x",
        "file://",
        "file://evil/data/x",
        "file:///data/%00",
    ] {
        let breach = breach(input(json!({ "url": url })));
        assert!(!breach.contains("passwd"), "{breach}");
    }
}

#[test]
fn the_longest_prefix_decides_whether_one_can_list_and_write() {
    let directory = |url: &str| input(json!({"type": "DIRECTORY", "url": url}));
    accepted(directory("s3://b/d/"));
    accepted(directory("https://dav.example.org/shared/d"));
    assert_eq!(
        breach(directory("https://example.org/d")),
        "inputs[0].url: https cannot list what a DIRECTORY holds"
    );
    assert_eq!(
        breach(directory("https://dav.example.org/shared/../d")),
        "inputs[0].url: its path must not have a `..` component"
    );
    accepted(output(json!({"url": "https://dav.example.org/other/f"})));
    assert_eq!(
        breach(output(json!({"url": "https://dav.example.org/shared/f"}))),
        "outputs[0].url: nothing can be delivered to https://dav.example.org/shared"
    );
}

#[test]
fn a_file_output_names_a_file() {
    for url in ["s3://b/k/", "s3://b", "/data/out/", "https://h/x/?y=z"] {
        let breach = breach(output(json!({ "url": url })));
        assert!(breach.contains("must name a file"), "{breach}");
        accepted(output(json!({"url": url, "type": "DIRECTORY"})));
        accepted(output(
            json!({"url": url, "path": "/o/*", "path_prefix": "/o"}),
        ));
    }
    accepted(output(json!({"url": "https://h/x?dir=/"})));
}

#[test]
fn passwords_are_kept_apart_and_shown_as_stars() {
    let sent = json!({
        "inputs": [null, {"path": "/in", "url": "ftp://me:p%40ss:x@h/a@b"}],
        "outputs": [{"path": "/work/o", "url": "https://me:%2a@h/o?x=u:p@h"}],
    });
    let accepted = accepted(sent);
    assert_eq!(accepted.secrets.0["inputs[0].url"], "p%40ss:x");
    assert_eq!(accepted.secrets.0["outputs[0].url"], "%2a");
    let task = &accepted.task;
    let url = task.inputs.as_ref().unwrap()[0].url.as_deref().unwrap();
    assert_eq!(url, "ftp://me:***@h/a@b");
    assert_eq!(
        accepted.secrets.restore("inputs[0].url", url),
        "ftp://me:p%40ss:x@h/a@b"
    );
    assert_eq!(
        task.outputs.as_ref().unwrap()[0].url,
        "https://me:***@h/o?x=u:p@h"
    );
    assert!(!format!("{accepted:?}").contains("ss:x"));
}

#[test]
fn only_ftp_and_http_urls_name_a_user() {
    accepted(input(json!({"url": "ftp://user@h/x"})));
    for url in ["s3://key:secret@b/k", "file://me@localhost/data/x"] {
        assert_eq!(
            breach(input(json!({ "url": url }))),
            "inputs[0].url: only FTP and HTTP(S) urls may name a user"
        );
    }
    accepted(input(json!({"url": "s3://b/a:b@c"})));
    accepted(input(json!({"url": "/data/x://a:b@c"})));
}
