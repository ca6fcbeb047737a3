//! Tasks from end to end, on this machine itself.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use tesk_core::local;
use tesk_core::scheduler::Capacity;
use tesk_core::tes::State;

use super::harness::{Place, ended, eventually, executor, settings, shell, system_logs};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        "host":
        a_command_succeeds_and_its_output_is_logged,
        inputs_go_in_and_outputs_come_out,
        a_missing_input_ends_the_task_before_any_executor,
        a_missing_output_is_a_system_error_that_names_it,
        outputs_are_delivered_after_a_failure_too,
        outputs_are_delivered_when_a_later_executor_cannot_be_started_too,
        a_sandbox_that_cannot_be_made_once_is_made_at_the_next_attempt,
        the_first_failure_stops_the_rest_unless_it_is_ignored,
        the_second_executor_sees_the_volume_of_the_first_and_no_other_file,
        tmp_is_private_and_empty,
        the_machines_files_are_read_only_and_the_data_directory_is_hidden,
        a_volume_shows_no_data_directory_by_another_name,
        paths_in_run_are_the_tasks_own_and_show_nothing_of_the_machine,
        the_processes_of_the_machine_are_not_seen,
        a_command_cannot_change_the_kernel_of_the_machine_even_as_root,
        no_file_that_the_server_has_open_reaches_a_command,
        no_name_leads_out_through_what_the_sandbox_has_open,
        exit_codes_are_those_of_a_shell,
        arguments_arrive_as_they_were_sent,
        the_environment_is_the_tasks_own,
        streams_are_redirected_to_files_and_from_them,
        an_output_beside_the_machines_files_is_collected,
        an_input_over_a_file_of_the_machine_is_seen_in_its_place,
        a_working_directory_is_made,
        what_a_command_leaves_behind_is_ended,
        a_queued_task_is_canceled_at_once,
        a_running_task_is_canceled_and_nothing_is_left,
        a_command_that_ignores_term_is_killed_after_the_grace,
        a_task_that_asks_for_more_than_the_machine_has_ends,
        no_more_tasks_run_at_once_than_the_machine_has_cores_for,
        the_directories_of_ended_attempts_are_gone,
        what_cannot_be_listed_is_removed_all_the_same,
        a_second_engine_in_one_data_directory_is_refused,
        a_time_limit_ends_a_task,
        a_task_can_be_observed_while_it_runs,
        a_small_task_costs_little,
    ]
}

async fn a_command_succeeds_and_its_output_is_logged() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let record = running
        .run(&place, &shell("echo out; echo err >&2"))
        .await?;
    ended(&record, State::Complete)?;
    let [log] = record.logs.as_slice() else {
        anyhow::bail!("{:?}", record.logs);
    };
    ensure!(log.start_time.is_some() && log.end_time >= log.start_time);
    let executor = log.logs.first().context("an executor log")?;
    ensure!(executor.stdout.as_deref() == Some("out\n"));
    ensure!(executor.stderr.as_deref() == Some("err\n"));
    ensure!(executor.exit_code == 0 && executor.start_time >= log.start_time);
    ensure!(system_logs(&record).contains("no image is used"));
    Ok(())
}

async fn inputs_go_in_and_outputs_come_out() -> Result<()> {
    let place = Place::new()?;
    fs::write(place.file("in"), "data")?;
    fs::create_dir_all(place.file("tree/sub"))?;
    fs::write(place.file("tree/sub/x"), "x")?;
    let running = place.start().await?;
    let task = json!({
        "inputs": [
            { "url": place.url("in"), "path": "/work/in" },
            { "content": "inline", "path": "/work/inline" },
            { "url": place.url("tree"), "path": "/work/tree", "type": "DIRECTORY" },
        ],
        "outputs": [
            { "url": place.url("out"), "path": "/work/out" },
            { "url": place.url("all"), "path": "/results/*.txt", "path_prefix": "/results" },
        ],
        "executors": [executor(
            "cat /work/in /work/inline /work/tree/sub/x > /work/out; echo changed > /work/in;
             echo a > /results/a.txt; echo b > /results/b.txt; echo c > /results/c"
        )],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "datainlinex");
    ensure!(place.read("all/a.txt")? == "a\n" && place.read("all/b.txt")? == "b\n");
    ensure!(!place.file("all/c").exists());
    ensure!(place.read("in")? == "data", "an input is a private copy");
    let mut paths: Vec<_> = record.logs[0].outputs.iter().map(|o| &o.path).collect();
    paths.sort();
    ensure!(paths == ["/results/a.txt", "/results/b.txt", "/work/out"]);
    Ok(())
}

async fn a_missing_input_ends_the_task_before_any_executor() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "inputs": [{ "url": place.url("nowhere"), "path": "/work/in" }],
        "executors": [executor("true")],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains(&place.url("nowhere")));
    ensure!(record.logs.len() == 1, "it is not tried again");
    ensure!(record.logs[0].logs.is_empty());
    Ok(())
}

async fn a_missing_output_is_a_system_error_that_names_it() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "outputs": [
            { "url": place.url("there"), "path": "/work/there" },
            { "url": place.url("missing"), "path": "/work/missing" },
        ],
        "executors": [executor("echo > /work/there")],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains("/work/missing"));
    ensure!(place.file("there").exists(), "the others are delivered");
    ensure!(record.logs[0].logs[0].exit_code == 0);
    Ok(())
}

async fn outputs_are_delivered_after_a_failure_too() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "outputs": [
            { "url": place.url("there"), "path": "/work/there" },
            { "url": place.url("missing"), "path": "/work/missing" },
        ],
        "executors": [executor("echo > /work/there; exit 7")],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::ExecutorError)?;
    ensure!(place.file("there").exists());
    ensure!(system_logs(&record).contains("/work/missing"));
    ensure!(record.logs[0].logs[0].exit_code == 7);
    Ok(())
}

async fn outputs_are_delivered_when_a_later_executor_cannot_be_started_too() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "outputs": [{ "url": place.url("there"), "path": "/work/there" }],
        "volumes": ["/deep/volume"],
        "executors": [
            executor("echo > /work/there; until [ -e /work/go ]; do sleep 0.02; done"),
            executor("true"),
        ],
    });
    let id = running.submit(&place, &task).await?;
    let scratch = place.path().join(format!("data/attempts/{id}-1/scratch"));
    eventually("the first runs", || Ok(scratch.join("work/there").exists())).await?;
    // No sandbox has the right to look into it, not even as root of its own name space.
    let above = scratch.join("deep");
    fs::set_permissions(&above, fs::Permissions::from_mode(0o000))?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&above, Some(54_321), Some(54_321))?;
    }
    fs::write(scratch.join("work/go"), "")?;
    let record = running.end(&id).await?;
    ended(&record, State::SystemError)?;
    ensure!(record.logs.len() == 1 && record.logs[0].logs.len() == 1);
    ensure!(place.file("there").exists());
    ensure!(record.logs[0].outputs.len() == 1);
    Ok(())
}

async fn a_sandbox_that_cannot_be_made_once_is_made_at_the_next_attempt() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "volumes": ["/volume", "/work"],
        "executors": [
            executor("echo > /work/there; until [ -e /work/go ]; do sleep 0.02; done"),
            executor("true"),
        ],
    });
    let id = running.submit(&place, &task).await?;
    for number in 1..=2 {
        let scratch = place
            .path()
            .join(format!("data/attempts/{id}-{number}/scratch"));
        let there = scratch.join("work/there");
        eventually("the first executor runs", || Ok(there.exists())).await?;
        if number == 1 {
            fs::remove_dir(scratch.join("volume"))?;
        }
        fs::write(scratch.join("work/go"), "")?;
    }
    let record = running.end(&id).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs.len() == 2);
    let said = system_logs(&record);
    ensure!(
        said.contains("cannot make a sandbox") && !said.contains("name spaces"),
        "{said}"
    );
    Ok(())
}

async fn the_first_failure_stops_the_rest_unless_it_is_ignored() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let mut failing = executor("exit 3");
    let task = json!({ "executors": [executor("true"), failing, executor("true")] });
    let record = running.run(&place, &task).await?;
    ended(&record, State::ExecutorError)?;
    let codes = |record: &tesk_core::scheduler::Record| -> Vec<i32> {
        record.logs[0]
            .logs
            .iter()
            .map(|log| log.exit_code)
            .collect()
    };
    ensure!(codes(&record) == [0, 3]);
    failing["ignore_error"] = json!(true);
    let task = json!({ "executors": [failing, executor("exit 0")] });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(codes(&record) == [3, 0]);
    Ok(())
}

async fn the_second_executor_sees_the_volume_of_the_first_and_no_other_file() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "volumes": ["/vol"],
        "executors": [
            executor("echo shared > /vol/x; echo t > /tmp/t; echo lost > /lost"),
            executor("cat /vol/x /tmp/t; test ! -e /lost"),
        ],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs[0].logs[1].stdout.as_deref() == Some("shared\nt\n"));
    Ok(())
}

async fn tmp_is_private_and_empty() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    for _ in 0..2 {
        let record = running
            .run(&place, &shell("ls -A /tmp; echo x > /tmp/x"))
            .await?;
        ended(&record, State::Complete)?;
        ensure!(record.logs[0].logs[0].stdout.as_deref() == Some(""));
    }
    Ok(())
}

async fn the_machines_files_are_read_only_and_the_data_directory_is_hidden() -> Result<()> {
    // Outside /tmp, which commands do not see anyhow.
    let root = tempfile::tempdir_in("/var/tmp")?;
    fs::create_dir(root.path().join("files"))?;
    let mut settings = settings(root.path())?;
    settings.data = root.path().join("data");
    let engine = local::open(settings).await?;
    let script = format!(
        "touch /usr/x 2>/dev/null && exit 1
         touch {root}/files/x 2>/dev/null && exit 2
         mount -o remount,rw /usr 2>/dev/null && exit 3
         test -e /usr/bin || exit 4
         test -d {root}/data || exit 5
         test -z \"$(ls -A {root}/data)\" || exit 6
         umount {root}/data 2>/dev/null && exit 7
         exit 0",
        root = root.path().display()
    );
    let task = super::harness::new_task(&shell(&script), root.path())?;
    let id = task.id.clone();
    let store = engine.store();
    store.create(task).await?;
    let running = super::harness::Running { engine, store };
    let record = running.end(&id).await?;
    ended(&record, State::Complete)
}

async fn a_volume_shows_no_data_directory_by_another_name() -> Result<()> {
    // Outside /tmp, which commands do not see anyhow.
    let root = tempfile::tempdir_in("/var/tmp")?;
    let real = root.path().join("real");
    fs::create_dir_all(real.join("sub"))?;
    fs::write(real.join("sub/beside"), "")?;
    let mut settings = settings(root.path())?;
    settings.data = real.join("sub/data");
    fs::create_dir(root.path().join("files"))?;
    std::os::unix::fs::symlink(&real, root.path().join("other"))?;
    let engine = local::open(settings).await?;
    let store = engine.store();
    let running = super::harness::Running { engine, store };
    let (place, root) = (root.path(), root.path().display());
    // A volume beside the data, above it, and in it.
    for volume in [
        "other/sub/v",
        "other/v",
        "other/sub/data/v",
        "real/sub/data/v",
    ] {
        let script = format!(
            "cd {root}; echo x > {volume}/x
             find -name beside; find -name tasks.sqlite; find -name attempts"
        );
        let mut task = shell(&script);
        task["volumes"] = json!([format!("{root}/{volume}")]);
        let task = super::harness::new_task(&task, place)?;
        let id = task.id.clone();
        running.store.create(task).await?;
        let record = running.end(&id).await?;
        ended(&record, State::Complete)?;
        let seen = record.logs[0].logs[0].stdout.clone().unwrap_or_default();
        ensure!(seen.contains("beside"), "{volume}: {seen}");
        ensure!(!seen.contains("tasks.sqlite"), "{volume}: {seen}");
        ensure!(!seen.contains("attempts"), "{volume}: {seen}");
    }
    Ok(())
}

async fn paths_in_run_are_the_tasks_own_and_show_nothing_of_the_machine() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "inputs": [{ "content": "in", "path": "/run/tesk-test/in/file" }],
        "volumes": ["/run/tesk-test/v", "/var/run/tesk-test-2"],
        "outputs": [{ "url": place.url("out"), "path": "/var/run/tesk-test-3/out" }],
        "executors": [
            executor("cat /run/tesk-test/in/file > /run/tesk-test/v/x; echo y > /var/run/tesk-test-2/y"),
            executor(
                "cat /run/tesk-test/v/x /var/run/tesk-test-2/y > /var/run/tesk-test-3/out
                 ls -A /var/run /run",
            ),
        ],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("out")? == "iny\n", "{}", place.read("out")?);
    let seen = record.logs[0].logs[1].stdout.clone().unwrap_or_default();
    let expected = ["systemd", "resolvconf", "NetworkManager", "current-system"];
    for name in seen.lines().filter(|line| !line.is_empty()) {
        let own = name.starts_with("tesk-test") || name.ends_with(':');
        ensure!(own || expected.contains(&name), "{name} is seen");
    }
    // All of it may be the task's too.
    let mut task = shell("ls -A /run; echo x > /run/x");
    task["volumes"] = json!(["/run"]);
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs[0].logs[0].stdout.as_deref() == Some(""));
    Ok(())
}

async fn the_processes_of_the_machine_are_not_seen() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let script = "ls /proc | grep -c '^[0-9]'; cat /proc/1/environ; cat /proc/1/fd/0";
    let record = running.run(&place, &shell(script)).await?;
    let log = &record.logs[0].logs[0];
    let seen: u32 = log.stdout.as_deref().unwrap_or_default().trim().parse()?;
    ensure!(seen < 8, "{seen} processes");
    ensure!(
        log.exit_code != 0,
        "process 1 is not the command's to look into"
    );
    Ok(())
}

async fn a_command_cannot_change_the_kernel_of_the_machine_even_as_root() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    // Only opened: a test that fails changes nothing either.
    let script = "for f in sys/kernel/hostname sys/kernel/core_pattern sysrq-trigger; do
        test ! -e /proc/$f || ! ( exec 3>>/proc/$f ) || echo $f; done
        head -c 1 /proc/keys /proc/timer_list /proc/kcore | grep -v '^==>' | grep .; true";
    let record = running.run(&place, &shell(script)).await?;
    ended(&record, State::Complete)?;
    let out = record.logs[0].logs[0].stdout.clone().unwrap_or_default();
    ensure!(out.is_empty(), "{out}");
    let warned = system_logs(&record).contains("AS ROOT");
    ensure!(warned == rustix::process::geteuid().is_root());
    Ok(())
}

async fn no_file_that_the_server_has_open_reaches_a_command() -> Result<()> {
    let place = Place::new()?;
    // Without the mark that closes it when a program is started.
    let _inherited = rustix::io::dup(fs::File::open("/dev/null")?)?;
    let running = place.start().await?;
    let record = running.run(&place, &shell("ls /proc/self/fd")).await?;
    ended(&record, State::Complete)?;
    let out = record.logs[0].logs[0].stdout.clone().unwrap_or_default();
    // The last is the directory itself.
    ensure!(out == "0\n1\n2\n3\n", "{out}");
    Ok(())
}

async fn no_name_leads_out_through_what_the_sandbox_has_open() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    // Whatever number it has; what lies there must be nothing of this machine.
    for number in 3..20 {
        let link = format!("rm -rf /w/l; ln -s /proc/self/fd/{number} /w/l");
        let mut inside = executor("pwd; ls -la . ..; echo x > left-behind; true");
        inside["workdir"] = json!("/w/l");
        let mut redirected = executor("echo out");
        redirected["stdout"] = json!("/w/l/w/left-behind");
        // The program itself: found in scratch it is one of the task's, seen from outside.
        let mut program = executor("");
        program["command"] = json!([format!("/proc/self/fd/{number}/w/program")]);
        let make =
            format!("{link}; printf '#!/bin/sh\\necho ran\\n' > /w/program; chmod +x /w/program");
        for command in [inside, redirected, program] {
            let task = json!({
                "volumes": ["/w"],
                "outputs": [{ "url": place.url("w"), "path": "/w", "type": "DIRECTORY" }],
                "executors": [executor(&make), command.clone()],
            });
            let record = running.run(&place, &task).await?;
            let log = record.logs[0]
                .logs
                .get(1)
                .context("the second did not run")?;
            ensure!(log.exit_code != 0, "{command}: {log:?}");
            ensure!(log.stdout.as_deref() == Some(""), "{command}: {log:?}");
            ensure!(!place.file("w/left-behind").exists(), "{command}");
        }
    }
    Ok(())
}

async fn exit_codes_are_those_of_a_shell() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let run = |command: serde_json::Value| {
        let task = json!({ "executors": [{ "image": "i", "command": command }] });
        let (running, place) = (&running, &place);
        async move {
            let record = running.run(place, &task).await?;
            ended(&record, State::ExecutorError)?;
            anyhow::Ok(record.logs[0].logs[0].exit_code)
        }
    };
    ensure!(run(json!(["no-such-program"])).await? == 127);
    ensure!(run(json!(["/etc/passwd"])).await? == 126);
    ensure!(run(json!(["sh", "-c", "kill -9 $$"])).await? == 137);
    Ok(())
}

async fn arguments_arrive_as_they_were_sent() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let arguments = ["a b", "", "$(X)", "$$", "'\"", "line\nbreak", "*"];
    let mut command = vec!["printf", "[%s]"];
    command.extend(arguments);
    let task = json!({ "executors": [{ "image": "i", "command": command }] });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    let wanted = format!("[{}]", arguments.join("]["));
    ensure!(record.logs[0].logs[0].stdout.as_deref() == Some(wanted.as_str()));
    Ok(())
}

async fn the_environment_is_the_tasks_own() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let mut command = executor("env");
    command["env"] = json!({ "HOME": "/elsewhere", "MULTI": "a\nb", "EMPTY": "" });
    let record = running
        .run(&place, &json!({ "executors": [command] }))
        .await?;
    let out = record.logs[0].logs[0].stdout.clone().unwrap_or_default();
    ensure!(
        out.contains("HOME=/elsewhere\n") && out.contains("MULTI=a\nb\n"),
        "{out}"
    );
    ensure!(
        !out.contains("CARGO"),
        "the engine's own variables are not passed on: {out}"
    );
    Ok(())
}

async fn streams_are_redirected_to_files_and_from_them() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "inputs": [{ "content": "hello", "path": "/work/in" }],
        "outputs": [{ "url": place.url("out"), "path": "/work/deep/out" }],
        "executors": [{
            "image": "i", "command": ["sh", "-c", "cat; echo err >&2"],
            "stdin": "/work/in", "stdout": "/work/deep/out", "stderr": "/work/deep/out",
        }],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    let out = place.read("out")?;
    ensure!(out.contains("hello") && out.contains("err\n"), "{out}");
    ensure!(record.logs[0].logs[0].stdout.as_deref() == Some("hello"));

    let task = json!({ "executors": [
        { "image": "i", "command": ["cat"], "stdin": "/work/missing" }
    ]});
    let record = running.run(&place, &task).await?;
    ended(&record, State::ExecutorError)?;
    let log = &record.logs[0].logs[0];
    ensure!(log.exit_code == 1);
    ensure!(
        log.stderr
            .as_deref()
            .is_some_and(|s| s.contains("/work/missing"))
    );
    ensure!(system_logs(&record).contains("/work/missing"));
    Ok(())
}

async fn an_output_beside_the_machines_files_is_collected() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "outputs": [
            { "url": place.url("root"), "path": "/result" },
            { "url": place.url("etc"), "path": "/etc/result" },
            { "url": place.url("pattern"), "path": "/etc/result-*", "path_prefix": "/etc" },
        ],
        "executors": [executor(
            "test -e /etc/passwd && echo 1 > /result && echo 2 > /etc/result && echo 3 > /etc/result-3"
        )],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(place.read("root")? == "1\n");
    ensure!(place.read("etc")? == "2\n");
    ensure!(place.read("pattern/result-3")? == "3\n");
    let said = system_logs(&record);
    ensure!(
        said.contains("no volume has /etc/result, /etc/result-*, /result:"),
        "{said}"
    );
    Ok(())
}

async fn an_input_over_a_file_of_the_machine_is_seen_in_its_place() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "inputs": [
            { "content": "mine", "path": "/etc/passwd" },
            { "content": "new", "path": "/etc/brand-new" },
        ],
        "executors": [executor("cat /etc/passwd /etc/brand-new; test -e /etc/group")],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs[0].logs[0].stdout.as_deref() == Some("minenew"));
    Ok(())
}

async fn a_working_directory_is_made() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let mut command = executor("pwd; echo > here");
    command["workdir"] = json!("/deep/work/dir");
    let record = running
        .run(&place, &json!({ "executors": [&command] }))
        .await?;
    ended(&record, State::Complete)?;
    ensure!(record.logs[0].logs[0].stdout.as_deref() == Some("/deep/work/dir\n"));
    let said = system_logs(&record);
    ensure!(
        said.contains("in memory") && said.contains("/deep/work/dir"),
        "{said}"
    );
    let task = json!({ "volumes": ["/deep"], "executors": [command] });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    ensure!(!system_logs(&record).contains("no volume has"));
    Ok(())
}

async fn what_a_command_leaves_behind_is_ended() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let beat = |file| format!("while :; do echo >> {file}; sleep 0.01; done");
    let (a, b) = (beat("/vol/a"), beat("/vol/b"));
    let script = format!(
        "({a}) & setsid sh -c '{b}' >/dev/null 2>&1 & \
         until [ -s /vol/a ] && [ -s /vol/b ]; do sleep 0.01; done"
    );
    let task = json!({
        "volumes": ["/vol"],
        "executors": [
            executor(&script),
            executor("cat /vol/a /vol/b | wc -l; sleep 0.2; cat /vol/a /vol/b | wc -l"),
        ],
    });
    let record = running.run(&place, &task).await?;
    ended(&record, State::Complete)?;
    let out = record.logs[0].logs[1].stdout.clone().unwrap_or_default();
    let beats: Vec<_> = out.lines().collect();
    ensure!(beats.len() == 2 && beats[0] == beats[1], "{out}");
    Ok(())
}

async fn a_queued_task_is_canceled_at_once() -> Result<()> {
    let place = Place::new()?;
    let running = place
        .start_with(|settings| settings.scheduler.max_active = 1)
        .await?;
    let first = running.submit(&place, &shell("sleep 60")).await?;
    running.until(&first, |s| s == State::Running).await?;
    let second = running.submit(&place, &shell("true")).await?;
    running.cancel(&second).await?;
    let record = running.store.get(&second).await?.context("get")?;
    ended(&record, State::Canceled)?;
    ensure!(record.logs.len() == 1 && record.logs[0].start_time.is_none());
    running.cancel(&first).await?;
    ended(&running.end(&first).await?, State::Canceled)
}

async fn a_running_task_is_canceled_and_nothing_is_left() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let task = json!({
        "outputs": [{ "url": place.url("out"), "path": "/work/out" }],
        "executors": [executor("echo > /work/out; sleep 60"), executor("true")],
    });
    let id = running.submit(&place, &task).await?;
    running.until(&id, |s| s == State::Running).await?;
    running.cancel(&id).await?;
    running.cancel(&id).await?;
    let record = running.end(&id).await?;
    ended(&record, State::Canceled)?;
    ensure!(
        !place.file("out").exists(),
        "nothing is delivered after a cancel"
    );
    ensure!(record.logs[0].logs.len() <= 1);
    running.cancel(&id).await?;
    eventually("the attempt is gone", || Ok(place.attempts()?.is_empty())).await
}

async fn a_command_that_ignores_term_is_killed_after_the_grace() -> Result<()> {
    let place = Place::new()?;
    let running = place
        .start_with(|settings| settings.scheduler.grace = Duration::from_millis(300))
        .await?;
    let script = "trap '' TERM; echo said; setsid sleep 60 & : > /work/trapped; \
                  while :; do sleep 0.05; done";
    let task = json!({ "volumes": ["/work"], "executors": [executor(script)] });
    let id = running.submit(&place, &task).await?;
    let scratch = place.path().join(format!("data/attempts/{id}-1/scratch"));
    eventually("TERM is ignored", || {
        Ok(scratch.join("work/trapped").exists())
    })
    .await?;
    let asked = Instant::now();
    running.cancel(&id).await?;
    let record = running.end(&id).await?;
    ended(&record, State::Canceled)?;
    let took = asked.elapsed();
    ensure!(took > Duration::from_millis(300), "{took:?}");
    let log = record.logs[0].logs.first().context("the executor's log")?;
    ensure!(
        log.stdout.as_deref() == Some("said\n") && log.exit_code == 137,
        "{log:?}"
    );
    ensure!(system_logs(&record).contains("killed: it did not end"));
    Ok(())
}

async fn a_task_that_asks_for_more_than_the_machine_has_ends() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let mut task = shell("true");
    task["resources"] = json!({ "cpu_cores": 5 });
    let record = running.run(&place, &task).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains("5 CPU cores"));
    Ok(())
}

async fn no_more_tasks_run_at_once_than_the_machine_has_cores_for() -> Result<()> {
    let place = Place::new()?;
    let running = place
        .start_with(|settings| {
            settings.scheduler.capacity = Some(Capacity {
                cores: 2,
                memory: 1 << 30,
            });
        })
        .await?;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(running.submit(&place, &shell("sleep 0.2")).await?);
    }
    let mut times = Vec::new();
    for id in &ids {
        let record = running.end(id).await?;
        ended(&record, State::Complete)?;
        let log = &record.logs[0];
        times.push((log.start_time, log.end_time));
    }
    for (start, _) in &times {
        let at_once = times
            .iter()
            .filter(|(s, e)| s <= start && start < e)
            .count();
        ensure!(at_once <= 2, "{at_once} at once: {times:?}");
    }
    Ok(())
}

async fn the_directories_of_ended_attempts_are_gone() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    for script in ["true", "false"] {
        running.run(&place, &shell(script)).await?;
    }
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn what_cannot_be_listed_is_removed_all_the_same() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let script = "mkdir -p /tmp/a/b && touch /tmp/a/b/c && chmod 0 /tmp/a/b /tmp/a";
    ended(&running.run(&place, &shell(script)).await?, State::Complete)?;
    eventually("no attempt is left", || Ok(place.attempts()?.is_empty())).await
}

async fn a_second_engine_in_one_data_directory_is_refused() -> Result<()> {
    let place = Place::new()?;
    let _running = place.start().await?;
    let refused = local::open(settings(place.path())?).await;
    let error = refused.err().context("it was let in")?.to_string();
    ensure!(
        error.contains("in use") && error.contains("data"),
        "{error}"
    );
    Ok(())
}

async fn a_time_limit_ends_a_task() -> Result<()> {
    let place = Place::new()?;
    let running = place
        .start_with(|settings| settings.scheduler.time_limit = Some(Duration::from_millis(500)))
        .await?;
    let record = running.run(&place, &shell("sleep 60")).await?;
    ended(&record, State::SystemError)?;
    ensure!(system_logs(&record).contains("time limit"));
    ensure!(record.logs.len() == 1, "it is not tried again");
    Ok(())
}

async fn a_task_can_be_observed_while_it_runs() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let id = running.submit(&place, &shell("sleep 60")).await?;
    running.until(&id, |s| s == State::Running).await?;
    let observed = running.engine.observe(&id).await?.context("observed")?;
    ensure!(observed.started.is_some());
    running.cancel(&id).await?;
    running.end(&id).await?;
    ensure!(running.engine.observe(&id).await?.is_none());
    Ok(())
}

async fn a_small_task_costs_little() -> Result<()> {
    let place = Place::new()?;
    let running = place.start().await?;
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        ended(&running.run(&place, &shell("true")).await?, State::Complete)?;
        best = best.min(begun.elapsed());
    }
    eprintln!("a task of `true` took {best:?}");
    // Far above what it takes on any machine, and below a poll of the scheduler.
    ensure!(best < Duration::from_secs(5), "{best:?}");
    Ok(())
}
