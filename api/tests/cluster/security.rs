//! What a command can see and spoil in its pod.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, is_terminal, reasons, script, stdout, text, with};
use crate::storages::{SECRET_KEY, credentials};
use crate::web::PASSWORD;
use crate::{Suite, Tests, trials};

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    trials![tests, "security":
        a_command_finds_no_credential_in_any_file_variable_or_mount,
        a_pod_has_no_token_and_no_privileges,
        a_command_writes_to_its_own_handover_alone,
        a_symlink_to_the_credentials_is_not_delivered,
        a_forged_record_does_not_hide_a_failure,
        a_forged_record_of_a_later_step_is_not_believed,
        a_command_that_kills_its_supervisor_ends_as_an_error,
        a_locked_file_of_the_command_does_not_stop_the_task,
        under_the_restricted_standard_images_with_a_user_run_and_others_say_why_not,
    ]
}

/// With a password in a URL, so that there is something to be found.
fn with_secrets(suite: &Suite, task: Value) -> Value {
    suite.web.put("/private/given", "given\n");
    let url = suite.web.private_url("/given");
    with(
        task,
        &json!({ "inputs": [{ "path": "/data/in", "url": url }] }),
    )
}

async fn a_command_finds_no_credential_in_any_file_variable_or_mount(
    suite: Arc<Suite>,
) -> Result<()> {
    // Marks, so that what the script itself says is not what is found: the needles are split.
    let find = r#"
        for needle in "hunter2-is-""secret" "key-of-""s3-secret" "BEGIN ""CERT" "eyJhbG""ciOi" \
            "access_""key_id" "[[stor""age]]"; do
            grep -rlIF -e "$needle" / --exclude-dir=proc --exclude-dir=sys 2>/dev/null |
                sed "s|^|FOUND $needle in |"
            cat /proc/[0-9]*/environ /proc/1/cmdline 2>/dev/null | tr '\0' '\n' |
                grep -F -e "$needle" | sed "s|^|FOUND in a process |"
        done
        find / -xdev \( -path '*serviceaccount*' -o -name secrets.json -o -name filer.toml \) \
            -print 2>/dev/null | sed 's|^|FILE |'
        ls -d /var/run/secrets CREDENTIALS /.tesk/config /.tesk/secrets /.tesk/plan 2>/dev/null |
            sed 's|^|FOUND directory |'
        find /.tesk | sort | sed 's|^|SEES |'
        awk '{ print "MOUNT " $2 " " $4 }' /proc/mounts
        env | sed 's|^|ENV |'
        echo searched
    "#;
    let find = find.replace("CREDENTIALS", &credentials().display().to_string());
    let task = with_secrets(&suite, script(&find));
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    let seen = stdout(&task, 0);
    ensure!(seen.ends_with("searched\n"), "{task:#}");
    for line in seen.lines() {
        ensure!(
            !line.starts_with("FOUND") && !line.starts_with("FILE"),
            "{line}\n{seen}"
        );
        ensure!(
            !line.contains(PASSWORD) && !line.contains(SECRET_KEY),
            "{line}"
        );
        // Nothing of the engine can be written to but the own hand-over.
        if let Some(mount) = line.strip_prefix("MOUNT /.tesk/") {
            let own = mount.starts_with("handover/executor-0 ");
            ensure!(own || mount.contains(" ro,"), "{line}");
        }
        // The address of the API server is told to every container, but of no other service.
        let service = line.starts_with("ENV ") && line.contains("_SERVICE_HOST=");
        ensure!(!service || line.starts_with("ENV KUBERNETES_"), "{line}");
    }
    ensure!(seen.contains("SEES /.tesk/bin/filer"), "{seen}");
    Ok(())
}

async fn a_pod_has_no_token_and_no_privileges(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let look = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status";
    let look = format!("{look}; {}", suite.web.gate("privileges"));
    let id = place.submit(&script(&look)).await?;
    place.wait_for(&id, "RUNNING").await?;
    let selector = format!("tesk.elixir-cloud.org/task={id}");
    let pods = place.objects("pods", &selector).await?;
    suite.web.open("privileges");
    ensure!(pods.len() == 1, "{} pods", pods.len());
    let spec = &pods[0]["spec"];
    ensure!(spec["automountServiceAccountToken"] == false);
    let containers = spec["containers"].as_array().cloned().unwrap_or_default();
    ensure!(containers.len() == 3);
    for container in containers {
        let security = &container["securityContext"];
        ensure!(
            security["allowPrivilegeEscalation"] == false,
            "{container:#}"
        );
        ensure!(
            !container.to_string().contains("serviceaccount"),
            "{container:#}"
        );
    }
    let task = place.wait_for(&id, "COMPLETE").await?;
    let status = stdout(&task, 0);
    ensure!(status == "NoNewPrivs:\t1\nSeccomp:\t2\n", "{status}");
    Ok(())
}

async fn a_command_writes_to_its_own_handover_alone(suite: Arc<Suite>) -> Result<()> {
    let forge = "
        cd /.tesk
        for file in handover/x handover/inputs/record handover/executor-0/record \
            handover/executor-2/record handover/outputs/record bin/filer bin/plan.json \
            control/stop; do
            (echo {} >$file) 2>/dev/null && echo WROTE $file
            rm -f $file 2>/dev/null && ! [ -e $file ] && echo none >/dev/null
        done
        mount -o remount,rw /.tesk/bin 2>/dev/null && echo REMOUNTED
        umount /.tesk/handover 2>/dev/null && echo UNMOUNTED
        echo tried
    ";
    let step = |script: &str| json!({ "image": "busybox:1", "command": ["sh", "-c", script] });
    let task = json!({ "executors": [
        step("true"), step(forge), step("ls /.tesk/handover/executor-0 && echo last"),
    ] });
    let task = suite.place().await?.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 1) == "tried\n", "{task:#}");
    ensure!(stdout(&task, 2).ends_with("last\n"), "{task:#}");
    Ok(())
}

async fn a_symlink_to_the_credentials_is_not_delivered(suite: Arc<Suite>) -> Result<()> {
    let marker = credentials().join("marker").display().to_string();
    for (name, target) in [
        ("storages", "/.tesk/config/filer.toml"),
        ("key", marker.as_str()),
        ("urls", "/.tesk/secrets/secrets.json"),
        ("relative", "../../secrets/secrets.json"),
        ("machine", "/proc/1/environ"),
    ] {
        let delivered = format!("/symlinks/{name}");
        let task = with_secrets(&suite, script(&format!("ln -s {target} /out/file")));
        let outputs = json!([{ "path": "/out/file", "url": suite.web.url(&delivered) }]);
        let task = with(task, &json!({ "outputs": outputs }));
        let task = suite.place().await?.run(&task, "SYSTEM_ERROR").await?;
        ensure!(suite.web.get(&delivered).is_none(), "{name}: {task:#}");
        ensure!(reasons(&task).contains("/out/file"), "{name}: {task:#}");
    }
    let all = suite.web.all();
    let leaks = all.iter().filter(|(_, content)| {
        let content = String::from_utf8_lossy(content);
        [PASSWORD, SECRET_KEY]
            .iter()
            .any(|secret| content.contains(secret))
    });
    let leaks: Vec<_> = leaks.map(|(path, _)| path).collect();
    ensure!(leaks.is_empty(), "{leaks:?}");
    Ok(())
}

/// What a supervisor would say of a command that did well.
const FORGED: &str = r#"{"version":1,"verdict":"done","exit_code":0,"started":"2026-01-01T00:00:00Z","ended":"2026-01-01T00:00:01Z","stdout":"forged","stderr":"","notes":[]}"#;

async fn a_forged_record_does_not_hide_a_failure(suite: Arc<Suite>) -> Result<()> {
    let forge = format!(
        "cd /.tesk/handover/executor-0; echo '{FORGED}' >record; echo '{FORGED}' >/dev/termination-log; exit 9"
    );
    let task = script(&forge);
    let task = suite.place().await?.run(&task, "EXECUTOR_ERROR").await?;
    let log = &task["logs"][0]["logs"][0];
    ensure!(log["exit_code"] == 9, "{task:#}");
    ensure!(!text(&log["stdout"]).contains("forged"), "{task:#}");
    Ok(())
}

async fn a_forged_record_of_a_later_step_is_not_believed(suite: Arc<Suite>) -> Result<()> {
    // The last step's own directory is filled before its turn: nobody but itself can write there,
    // so all that can be forged is one's own, in ways that are not expected.
    let forge = "
        cd /.tesk/handover/executor-0
        rm -rf record; mkfifo record; ln -s /.tesk/bin/plan.json record.tmp
        mv alive gone 2>/dev/null; mkdir alive 2>/dev/null
        true
    ";
    let step = |script: &str| json!({ "image": "busybox:1", "command": ["sh", "-c", script] });
    let task = json!({ "executors": [step(forge), step("echo second")] });
    let place = suite.place().await?;
    let id = place.submit(&task).await?;
    // However it ends, it ends, and only that task suffers.
    let task = place.wait(&id, "over", is_terminal).await?;
    ensure!(["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"].contains(&text(&task["state"])));
    place.gone(&id).await
}

async fn a_command_that_kills_its_supervisor_ends_as_an_error(suite: Arc<Suite>) -> Result<()> {
    // As the first process of its name space the supervisor cannot be killed from inside unless
    // it wants to; SIGTERM it takes for the end of the pod.
    let task = script("kill -9 1; kill -SEGV 1; kill -TERM 1; sleep 30; echo survived");
    let place = suite.place().await?;
    let id = place.submit(&task).await?;
    let task = place.wait(&id, "over", is_terminal).await?;
    ensure!(text(&task["state"]).ends_with("ERROR"), "{task:#}");
    ensure!(!task.to_string().contains("survived\\n"), "{task:#}");
    place.gone(&id).await
}

async fn a_locked_file_of_the_command_does_not_stop_the_task(suite: Arc<Suite>) -> Result<()> {
    // A process that outlives its command holds what looks like a living step.
    let forge = "
        cd /.tesk/handover/executor-0
        echo x >held
        (setsid flock held sleep 300 >/dev/null 2>&1 &)
        sleep 1; mv held alive; echo left
    ";
    let place = suite.place().await?;
    let id = place.submit(&script(forge)).await?;
    let task = place.wait(&id, "over", is_terminal).await?;
    ensure!(task["state"] != "CANCELED", "{task:#}");
    place.gone(&id).await
}

async fn under_the_restricted_standard_images_with_a_user_run_and_others_say_why_not(
    suite: Arc<Suite>,
) -> Result<()> {
    let place = Place::start("strict", "kubernetes.restricted = true").await?;
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    place
        .kubectl(&["label", "namespace", &place.namespace, enforce])
        .await?;
    let url = suite.web.url("/restricted/file");
    let command = json!(["sh", "-c", "umask 077; echo kept >/out/file"]);
    let of = |image: &str| {
        json!({
            "outputs": [{ "path": "/out/file", "url": url }],
            "executors": [{ "image": image, "command": command }],
        })
    };
    let task = place.run(&of("busybox-user:1"), "COMPLETE").await?;
    ensure!(suite.web.text("/restricted/file") == "kept\n", "{task:#}");
    let task = place.run(&of("busybox:1"), "SYSTEM_ERROR").await?;
    ensure!(reasons(&task).contains("root"), "{task:#}");
    place.gone(text(&task["id"])).await
}
