//! Inputs that are mounted from a claim instead of being copied.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, reasons, script, stdout, text, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "streams":
        a_streamable_file_and_directory_are_mounted_and_not_copied,
        a_streamable_input_that_is_missing_ends_as_one_that_is_copied,
        a_streamable_input_behind_a_symlink_ends_as_one_that_is_copied,
    ]
}

/// Puts `file` and `tree/a` below a directory of the claim.
async fn put(place: &Place, base: &str) -> Result<()> {
    let make = script("mkdir -p /out/tree/sub; echo file >/out/file; echo a >/out/tree/sub/a");
    let outputs = json!([
        { "path": "/out/file", "url": format!("{base}/file") },
        { "path": "/out/tree", "url": format!("{base}/tree"), "type": "DIRECTORY" },
    ]);
    place
        .run(&with(make, &json!({ "outputs": outputs })), "COMPLETE")
        .await?;
    Ok(())
}

/// An input at `/in/x`.
fn input(url: &str, kind: &str, streamable: bool) -> Value {
    let input = json!({ "path": "/in/x", "url": url, "type": kind, "streamable": streamable });
    with(
        script("find /in/x -type f -exec cat {} +"),
        &json!({ "inputs": [input] }),
    )
}

fn attempts(task: &Value) -> usize {
    task["logs"].as_array().map_or(0, Vec::len)
}

async fn a_streamable_file_and_directory_are_mounted_and_not_copied(
    suite: Arc<Suite>,
) -> Result<()> {
    let place = suite.place().await?;
    put(place, "file:///data/streams").await?;
    let read = r"
        cat /in/file /ref/sub/a
        for path in /in/file /ref/new /ref/sub/a; do
            (echo x >$path) 2>/dev/null && echo WROTE $path
        done
        rm -f /ref/sub/a 2>/dev/null; test -e /ref/sub/a || echo REMOVED
        mount -o remount,rw /ref 2>/dev/null && echo REMOUNTED
        # Where in its file system a mount begins.
        grep -E ' (/in/file|/ref) ' /proc/self/mountinfo | while read -r _ _ _ root path mode _; do
            case $root in */streams/file|*/streams/tree) root=claim ;; esac
            case $mode in ro|ro,*) mode=ro ;; esac
            echo $path $root $mode
        done | sort
        ls /in; cat /in/beside 2>/dev/null; echo beside >/in/beside
        find / -xdev -name streams -o -path /data 2>/dev/null
        :
    ";
    let step = |image: &str| json!({ "image": image, "command": ["sh", "-c", read] });
    let task = json!({
        "executors": [step("busybox:1"), step("busybox-user:1")],
        "inputs": [
            { "path": "/in/file", "url": "file:///data/streams/file", "streamable": true },
            {
                "path": "/ref", "url": "file:///data/streams/tree", "streamable": true,
                "type": "DIRECTORY",
            },
            { "path": "/in/copy", "url": "file:///data/streams/file" },
        ],
        "outputs": [{ "path": "/in/beside", "url": "file:///data/streams-out" }],
    });
    let task = place.run(&task, "COMPLETE").await?;
    ensure!(attempts(&task) == 1, "{task:#}");
    let seen = "file\na\n/in/file claim ro\n/ref claim ro\n";
    let both = [
        format!("{seen}copy\nfile\n"),
        format!("{seen}beside\ncopy\nfile\nbeside\n"),
    ];
    for (number, expected) in both.iter().enumerate() {
        let seen = stdout(&task, number);
        ensure!(seen == *expected, "{number}: {seen}\n{task:#}");
    }
    Ok(())
}

/// Why a task failed at its last attempt, but not what it waited for, and the task.
async fn failed(place: &Place, task: &Value) -> Result<(String, Value)> {
    let task = place.run(task, "SYSTEM_ERROR").await?;
    let last = task["logs"].as_array().and_then(|logs| logs.last());
    let lines = last.and_then(|log| log["system_logs"].as_array());
    let lines = lines.into_iter().flatten().map(text);
    let lines: Vec<_> = lines.filter(|line| !line.starts_with("waits: ")).collect();
    Ok((lines.join("\n"), task))
}

async fn a_streamable_input_that_is_missing_ends_as_one_that_is_copied(
    suite: Arc<Suite>,
) -> Result<()> {
    let place = suite.place().await?;
    let url = "file:///data/streams-missing/x";
    for (url, kind) in [(url, "FILE"), (url, "DIRECTORY")] {
        let (copied, _) = failed(place, &input(url, kind, false)).await?;
        let (mounted, task) = failed(place, &input(url, kind, true)).await?;
        ensure!(mounted == copied, "{kind}: {mounted}, not {copied}");
        ensure!(
            attempts(&task) == 2 && reasons(&task).contains("inputs[0] (/in/x) cannot be mounted"),
            "{task:#}"
        );
    }
    // The kubelet has made nothing there: it was never asked to mount it.
    let (after, _) = failed(
        place,
        &input("file:///data/streams-missing", "DIRECTORY", false),
    )
    .await?;
    ensure!(after.contains("streams-missing"), "{after}");
    Ok(())
}

async fn a_streamable_input_behind_a_symlink_ends_as_one_that_is_copied(
    suite: Arc<Suite>,
) -> Result<()> {
    let place = suite.place().await?;
    let base = "file:///data/streams-links";
    put(place, base).await?;
    let link = "cd /data/streams-links; ln -s file inside; ln -s /etc/passwd outside; \
                ln -s ../streams-links/tree way";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "links" },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "links", "image": "busybox:1", "command": ["sh", "-c", link],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
            }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }],
        },
    });
    place.create(&pod).await?;
    let ended = "--for=jsonpath={.status.phase}=Succeeded";
    place
        .kubectl(&["wait", ended, "pod/links", "--timeout=120s"])
        .await?;
    for (name, kind, content) in [
        ("inside", "FILE", "file\n"),
        ("way/sub", "DIRECTORY", "a\n"),
    ] {
        let task = input(&format!("{base}/{name}"), kind, true);
        let task = place.run(&task, "COMPLETE").await?;
        ensure!(
            attempts(&task) == 2 && stdout(&task, 0) == content,
            "{name}: {task:#}"
        );
    }
    let outside = format!("{base}/outside");
    let (copied, _) = failed(place, &input(&outside, "FILE", false)).await?;
    let (mounted, _) = failed(place, &input(&outside, "FILE", true)).await?;
    ensure!(mounted == copied, "{mounted}, not {copied}");
    Ok(())
}
