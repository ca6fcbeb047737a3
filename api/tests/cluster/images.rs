//! Images of all kinds, and paths that lie across theirs.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{script, stdout, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "images":
        what_only_root_may_read_is_delivered,
        an_image_with_a_user_reads_inputs_and_delivers_what_only_it_may_read,
        an_image_without_a_shell_runs,
        one_task_mixes_images_with_different_users,
        a_single_file_lies_in_a_directory_of_the_image,
        an_output_is_collected_from_a_directory_of_the_image,
        nested_paths_are_one_tree,
        inputs_in_500_directories_are_in_place,
        two_tasks_with_the_same_output_leave_one_whole,
        input_of_one_mebibyte_stands_in_the_task,
    ]
}

fn in_image(image: &str, command: &[&str]) -> Value {
    json!({ "executors": [{ "image": image, "command": command }] })
}

fn shell(image: &str, script: &str) -> Value {
    in_image(image, &["sh", "-c", script])
}

async fn what_only_root_may_read_is_delivered(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.url("/images/root");
    let task = with(
        shell(
            "busybox:1",
            "umask 077; mkdir /out/deep; id -u >/out/deep/id",
        ),
        &json!({ "outputs": [{ "path": "/out/deep/id", "url": url }], "volumes": ["/out"] }),
    );
    suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/images/root") == "0\n");
    Ok(())
}

async fn an_image_with_a_user_reads_inputs_and_delivers_what_only_it_may_read(
    suite: Arc<Suite>,
) -> Result<()> {
    let url = suite.web.url("/images/user");
    suite.web.put("/images/given", "given\n");
    let given = suite.web.url("/images/given");
    let task = with(
        shell(
            "busybox-user:1",
            "umask 077; cat /data/given >/out/id; echo more >>/data/given; id -u >>/out/id; touch /tmp/x",
        ),
        &json!({
            "inputs": [{ "path": "/data/given", "url": given }],
            "outputs": [{ "path": "/out/id", "url": url }],
        }),
    );
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(
        suite.web.text("/images/user") == "given\n1000\n",
        "{task:#}"
    );
    Ok(())
}

async fn an_image_without_a_shell_runs(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.url("/images/static");
    let task = with(
        in_image("static:1", &["/bin/dd", "if=/data/in", "of=/out/copy"]),
        &json!({
            "inputs": [{ "path": "/data/in", "content": "copied" }],
            "outputs": [{ "path": "/out/copy", "url": url }],
        }),
    );
    suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/images/static") == "copied");
    Ok(())
}

async fn one_task_mixes_images_with_different_users(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.url("/images/mixed");
    let task = json!({
        "volumes": ["/shared"],
        "outputs": [{ "path": "/shared/log", "url": url }],
        "executors": [
            { "image": "busybox-user:1", "command": ["sh", "-c", "id -u >/shared/log"] },
            { "image": "busybox:1", "command": ["sh", "-c", "id -u >>/shared/log"] },
            { "image": "static:1", "command": ["/bin/cat", "/shared/log"] },
        ],
    });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 2) == "1000\n0\n", "{task:#}");
    ensure!(suite.web.text("/images/mixed") == "1000\n0\n");
    Ok(())
}

async fn a_single_file_lies_in_a_directory_of_the_image(suite: Arc<Suite>) -> Result<()> {
    for image in ["busybox:1", "busybox-user:1"] {
        let task = with(
            shell(
                image,
                "cat /etc/tool.conf /usr/share/tool/data; grep -c root /etc/passwd; ls /bin/sh",
            ),
            &json!({ "inputs": [
                { "path": "/etc/tool.conf", "content": "configured\n" },
                { "path": "/usr/share/tool/data", "content": "data\n" },
            ] }),
        );
        let task = suite.place().await?.run(&task, "COMPLETE").await?;
        let expected = "configured\ndata\n1\n/bin/sh\n";
        ensure!(stdout(&task, 0) == expected, "{image}: {task:#}");
    }
    Ok(())
}

async fn an_output_is_collected_from_a_directory_of_the_image(suite: Arc<Suite>) -> Result<()> {
    let url = suite.web.url("/images/collected");
    let task = with(
        shell(
            "busybox:1",
            "umask 077; echo made >/etc/made; cat /etc/passwd | wc -l",
        ),
        &json!({ "outputs": [{ "path": "/etc/made", "url": url }] }),
    );
    suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/images/collected") == "made\n");
    Ok(())
}

async fn nested_paths_are_one_tree(suite: Arc<Suite>) -> Result<()> {
    let task = with(
        shell(
            "busybox:1",
            "cat /data/a/b/in /data/in /data/a/b/c/d/in; echo out >/data/a/b/out; ls /data/a/b",
        ),
        &json!({
            "volumes": ["/data/a", "/data/a/b/c"],
            "inputs": [
                { "path": "/data/a/b/in", "content": "1\n" },
                { "path": "/data/in", "content": "2\n" },
                { "path": "/data/a/b/c/d/in", "content": "3\n" },
            ],
            "outputs": [{ "path": "/data/a/b/out", "url": suite.web.url("/images/nested") }],
        }),
    );
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 0) == "1\n2\n3\nc\nin\nout\n", "{task:#}");
    ensure!(suite.web.text("/images/nested") == "out\n");
    Ok(())
}

async fn inputs_in_500_directories_are_in_place(suite: Arc<Suite>) -> Result<()> {
    // As cwl-tes makes them: a directory for each input.
    let inputs: Vec<_> = (0..500)
        .map(|n| {
            let path = format!("/var/lib/cwl/{n:08x}/file");
            json!({ "path": path, "content": format!("{n}\n") })
        })
        .collect();
    let task = with(
        script("cat /var/lib/cwl/*/file | sort -n | uniq | wc -l"),
        &json!({ "inputs": inputs }),
    );
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 0).trim() == "500", "{}", stdout(&task, 0));
    Ok(())
}

async fn two_tasks_with_the_same_output_leave_one_whole(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let of = |letter: &str| {
        let script = script(&format!(
            "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' {letter} >/out/file"
        ));
        let url = suite.web.url("/images/same");
        with(
            script,
            &json!({ "outputs": [{ "path": "/out/file", "url": url }] }),
        )
    };
    let (a, b) = (of("a"), of("b"));
    tokio::try_join!(place.run(&a, "COMPLETE"), place.run(&b, "COMPLETE"))?;
    let content = suite.web.get("/images/same").unwrap_or_default();
    ensure!(content.len() == 1 << 20, "{}", content.len());
    ensure!(content.iter().all(|byte| *byte == content[0]));
    Ok(())
}

async fn input_of_one_mebibyte_stands_in_the_task(suite: Arc<Suite>) -> Result<()> {
    // It does not compress, and so fills several ConfigMaps.
    let mut seed = 42_u64;
    let content: String = (0..1 << 20)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + (seed >> 33) as u8 % 90)
        })
        .collect();
    let task = with(
        script("md5sum </data/large; wc -c </data/large"),
        &json!({
            "inputs": [{ "path": "/data/large", "content": content }],
            "outputs": [{ "path": "/data/large", "url": suite.web.url("/images/large") }],
        }),
    );
    let place = suite.place().await?;
    let task = place.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/images/large") == content);
    place.gone(task["id"].as_str().unwrap_or_default()).await
}
