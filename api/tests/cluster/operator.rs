//! What an operator configures, and what tasks may ask for by that; `tesk run`.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use tokio::process::Command;

use crate::place::{Place, SOON, script, stdout, text, with};
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "operator":
        executors_get_what_the_operator_adds_and_what_tasks_may_ask_for,
        scratch_may_be_a_volume_of_its_own_that_goes_with_the_pod,
        the_filer_may_be_installed_by_an_init_container,
        tesk_run_takes_a_task_to_its_end_and_leaves_nothing,
        tesk_run_leaves_servers_and_their_tasks_alone,
    ]
}

async fn executors_get_what_the_operator_adds_and_what_tasks_may_ask_for(
    suite: Arc<Suite>,
) -> Result<()> {
    let settings = r#"
        [kubernetes]
        shm_size = "5MiB"
        [[kubernetes.mounts]]
        path = "/licences"
        config_map = "licences"
        in = "executors"
        [kubernetes.parameters.node_selector]
        os = "kubernetes.io/os"
        [kubernetes.parameters.reference_data.genomes]
        claim = "genomes"
        path = "/genomes"
        [kubernetes.patch.executor]
        env = [{ name = "ADDED", value = "by the operator" }]
        [kubernetes.patch.pod.metadata.labels]
        team = "genomics"
    "#;
    let place = Place::namespace("added", settings).await?;
    let licences = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "licences" },
        "data": { "tool.lic": "licenced\n" },
    });
    let genomes = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "genomes" },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": { "requests": { "storage": "1Mi" } },
        },
    });
    tokio::try_join!(place.create(&licences), place.create(&genomes))?;
    place.serve().await?;
    let look = "
        cat /licences/tool.lic; echo $ADDED; df -k /dev/shm | awk 'END { print $2 }'
        touch /licences/x /genomes/x 2>/dev/null; ls /genomes | wc -l
    ";
    let look = format!("{look}{}", suite.web.gate("added"));
    let parameters = json!({ "OS": "linux", "reference_data": "genomes" });
    let task = with(
        script(&look),
        &json!({ "resources": { "backend_parameters": parameters } }),
    );
    let id = place.submit(&task).await?;
    place.wait_for(&id, "RUNNING").await?;
    let pods = place.objects("pods", "team=genomics").await?;
    suite.web.open("added");
    ensure!(pods.len() == 1, "{} pods", pods.len());
    let selector = &pods[0]["spec"]["nodeSelector"];
    ensure!(selector["kubernetes.io/os"] == "linux", "{selector}");
    let task = place.wait_for(&id, "COMPLETE").await?;
    let expected = "licenced\nby the operator\n5120\n0\n";
    ensure!(stdout(&task, 0) == expected, "{task:#}");
    Ok(())
}

async fn scratch_may_be_a_volume_of_its_own_that_goes_with_the_pod(
    suite: Arc<Suite>,
) -> Result<()> {
    let settings = "kubernetes.scratch_class = 'hostpath'";
    let place = Place::start("claim", settings).await?;
    let url = suite.web.url("/operator/scratch");
    let task = json!({
        "inputs": [{ "path": "/task/in", "content": "one\n" }],
        "outputs": [{ "path": "/task/out", "url": url }],
        "executors": [
            { "image": "busybox-user:1", "command": ["cp", "/task/in", "/task/out"] },
            { "image": "busybox:1", "command": ["sh", "-c", "id -u >>/task/out"] },
        ],
    });
    let task = place.run(&task, "COMPLETE").await?;
    ensure!(
        suite.web.text("/operator/scratch") == "one\n0\n",
        "{task:#}"
    );
    place
        .until("the claim goes", || async {
            let claims = place.objects("persistentvolumeclaims", "").await?;
            Ok(claims.is_empty().then_some(()))
        })
        .await
}

async fn the_filer_may_be_installed_by_an_init_container(suite: Arc<Suite>) -> Result<()> {
    let place = Place::start("init", "kubernetes.install = 'init'").await?;
    let url = suite.web.url("/operator/init");
    let task = with(
        script("cp /data/in /out/file"),
        &json!({
            "inputs": [{ "path": "/data/in", "content": "given\n" }],
            "outputs": [{ "path": "/out/file", "url": url }],
        }),
    );
    let task = place.run(&task, "COMPLETE").await?;
    ensure!(suite.web.text("/operator/init") == "given\n", "{task:#}");
    place.gone(text(&task["id"])).await
}

async fn tesk_run(place: &Place, task: &serde_json::Value) -> Result<std::process::Output> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), task.to_string())?;
    let output = Command::new(env!("CARGO_BIN_EXE_tesk"))
        .arg("run")
        .arg(file.path())
        .arg("--config")
        .arg(place.config())
        .stdin(Stdio::null())
        .output()
        .await?;
    Ok(output)
}

async fn tesk_run_takes_a_task_to_its_end_and_leaves_nothing(suite: Arc<Suite>) -> Result<()> {
    let place = Place::namespace("run", "").await?;
    // With a password, so that there is a Secret too.
    let url = suite.web.private_url("/operator/run");
    let outputs = json!({ "outputs": [{ "path": "/out/file", "url": url }] });
    let done = tesk_run(&place, &with(script("echo ran >/out/file"), &outputs)).await?;
    let shown = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{done:?}");
    ensure!(shown.trim_end().ends_with("COMPLETE"), "{shown}");
    ensure!(suite.web.text("/private/operator/run") == "ran\n");
    let failed = tesk_run(&place, &script("echo to the log >&2; exit 3")).await?;
    ensure!(failed.status.code() == Some(1), "{failed:?}");
    let shown = String::from_utf8_lossy(&failed.stdout);
    ensure!(shown.contains("to the log"), "{failed:?}");
    place.nothing_left(ALL, OURS).await
}

/// All kinds of objects that there can be.
const ALL: &str = "pods,secrets,configmaps,leases";
const OURS: &str = "app.kubernetes.io/managed-by=tesk";

async fn tesk_run_leaves_servers_and_their_tasks_alone(_: Arc<Suite>) -> Result<()> {
    let busy = format!("limits.max_active = 1\n{SOON}");
    let place = Place::start("beside", &busy).await?;
    let waits = place.submit(&script("sleep 1000")).await?;
    place.wait_for(&waits, "RUNNING").await?;
    let queued = place.submit(&script("true")).await?;
    let before = place.objects(ALL, OURS).await?.len();
    // No turn is waited for, and the one that waits gets none.
    let done = tesk_run(&place, &script("true")).await?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(place.task(&queued).await?["state"] == "QUEUED");
    place
        .until("what it has made goes", || async {
            let now = place.objects(ALL, OURS).await?.len();
            Ok((now == before).then_some(()))
        })
        .await?;
    // Without its server it is not taken up either.
    place.kill().await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let done = tesk_run(&place, &script("true")).await?;
    ensure!(done.status.success(), "{done:?}");
    place.serve().await?;
    ensure!(place.task(&queued).await?["state"] == "QUEUED");
    place.cancel(&waits).await?;
    place.wait_for(&queued, "COMPLETE").await?;
    Ok(())
}
