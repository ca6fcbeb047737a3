//! Every storage backend, from inside pods, against servers of other makes. Which there are the
//! scripts in `conformance/servers` say, run around this program with `TESK_SERVERS_HOST`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::place::{Place, host, reasons, script, stdout, text, with};
use crate::{Suite, Tests, trials};

/// In the Secret with the credentials of the object store.
pub(crate) const SECRET_KEY: &str = "key-of-s3-secret";

pub(crate) fn trials(tests: &Tests) -> Vec<Trial> {
    let mut trials = trials![tests, "storages":
        a_claim_takes_and_gives_files_directories_and_wildcards,
        a_web_server_takes_and_gives_files,
        a_large_file_goes_through,
        a_directory_keeps_its_modes_on_a_claim,
        a_storage_that_is_not_served_is_refused,
    ];
    let servers = trials![tests, "storages":
        nginx_takes_and_gives_files,
        webdav_takes_and_gives_files_directories_and_wildcards,
        ftp_takes_and_gives_files_directories_and_wildcards,
        ftp_over_tls_takes_and_gives_with_an_authority_of_the_site,
        s3_takes_and_gives_files_directories_and_wildcards,
    ];
    let missing = "TESK_TEST_FTP TESK_TEST_HTTP TESK_S3_ENDPOINT"
        .split(' ')
        .any(|name| std::env::var_os(name).is_none());
    trials.extend(servers.into_iter().map(|trial| {
        if missing {
            trial
                .with_ignored_flag(true)
                .with_kind("no servers: see .ci/cluster")
        } else {
            trial
        }
    }));
    trials
}

/// Names and addresses of servers: `name=url`, separated by spaces.
fn servers(variable: &str) -> Vec<(String, String)> {
    let servers = std::env::var(variable).unwrap_or_default();
    let servers = servers.split_whitespace();
    let servers = servers.filter_map(|server| server.split_once('='));
    servers
        .map(|(n, url)| (n.to_owned(), url.to_owned()))
        .collect()
}

/// Where pods have the Secret of the object store. This machine has its files there too: the server
/// reads them at its start.
pub(crate) fn credentials() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("s3")
}

/// Where pods have the authorities that this site trusts, and this machine too.
fn authorities() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("authorities")
}

/// The server that most tests use.
pub(crate) async fn place() -> Result<Place> {
    let place = Place::namespace("shared", &settings()?).await?;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    place.create(&claim).await?;
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
    let data = json!({
        "id": variable("AWS_ACCESS_KEY_ID"),
        "secret": variable("AWS_SECRET_ACCESS_KEY"),
        "marker": SECRET_KEY,
    });
    std::fs::create_dir_all(credentials())?;
    for name in ["id", "secret"] {
        std::fs::write(credentials().join(name), text(&data[name]))?;
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s3" }, "stringData": data,
    });
    place.create(&secret).await?;
    if let Ok(file) = std::env::var("TESK_TEST_FTP_CA") {
        std::fs::create_dir_all(authorities())?;
        std::fs::copy(&file, authorities().join("ca.pem"))?;
        let authorities = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "authorities" },
            "data": { "ca.pem": std::fs::read_to_string(file)? },
        });
        place.create(&authorities).await?;
    }
    place.serve().await?;
    Ok(place)
}

fn settings() -> Result<String> {
    let credentials = credentials();
    let credentials = credentials.display();
    let mut settings = r#"
        [[kubernetes.mounts]]
        path = "/data"
        claim = "data"
        streamable = "file:///data"
        [[storage]]
        type = "ftp"
        prefix = ["ftp://", "ftps://"]
        [[storage]]
        type = "http"
        prefix = ["http://", "https://"]
        [[storage]]
        type = "pvc"
        prefix = "file:///data"
        "#
    .to_owned();
    write!(
        settings,
        "[[kubernetes.mounts]]\npath = '{credentials}'\nsecret = 's3'\n"
    )?;
    for (name, url) in servers("TESK_TEST_HTTP") {
        if name.contains("webdav") {
            let url: url::Url = url.parse()?;
            let port = url.port().context("a port")?;
            write!(
                settings,
                "[[storage]]\ntype = 'http'\nprefix = 'http://{}:{port}/'\nwebdav = true\n",
                host()
            )?;
        }
    }
    let authorities = authorities();
    let authorities = authorities.display();
    if std::env::var_os("TESK_TEST_FTP_CA").is_some() {
        write!(
            settings,
            "[[kubernetes.mounts]]\npath = '{authorities}'\nconfig_map = 'authorities'\n"
        )?;
    }
    for (name, url) in servers("TESK_TEST_FTP") {
        if name.contains("tls") {
            let url: url::Url = url.parse()?;
            let (scheme, port) = (url.scheme(), url.port().context("a port")?);
            let tls = if scheme == "ftps" {
                "implicit"
            } else {
                "explicit"
            };
            write!(
                settings,
                "[[storage]]\ntype = 'ftp'\nprefix = '{scheme}://{}:{port}/'\ntls = '{tls}'\n\
                 ca_file = '{authorities}/ca.pem'\n",
                host()
            )?;
        }
    }
    if let Ok(endpoint) = std::env::var("TESK_S3_ENDPOINT") {
        write!(
            settings,
            "[[storage]]\ntype = 's3'\nprefix = 's3://bucket/'\nendpoint = 'http://{endpoint}'\n\
             access_key_id_file = '{credentials}/id'\n\
             secret_access_key_file = '{credentials}/secret'\n"
        )?;
    }
    Ok(settings)
}

/// Delivers a file, a directory and what wildcards find, and fetches them again.
async fn round_trip(suite: &Suite, base: &str, directories: bool) -> Result<()> {
    let place = suite.place().await?;
    let make = "
        mkdir -p /out/tree/deep/er; echo 'a file' >/out/file
        echo 1 >/out/tree/one; echo 2 >'/out/tree/deep/t wo'; : >/out/tree/deep/er/empty
        echo a >/out/a.txt; echo b >/out/b.txt; echo c >/out/c.log
    ";
    let mut outputs = vec![
        json!({ "path": "/out/file", "url": format!("{base}/file") }),
        json!({ "path": "/out/*.txt", "path_prefix": "/out/", "url": format!("{base}/texts/") }),
    ];
    let mut inputs = vec![
        json!({ "path": "/in/file", "url": format!("{base}/file") }),
        json!({ "path": "/in/texts/a.txt", "url": format!("{base}/texts/a.txt") }),
        json!({ "path": "/in/texts/b.txt", "url": format!("{base}/texts/b.txt") }),
    ];
    if directories {
        outputs.push(json!({
            "path": "/out/tree", "url": format!("{base}/tree"), "type": "DIRECTORY",
        }));
        // Nothing but what the wildcards name is there.
        inputs.push(json!({
            "path": "/in/all", "url": format!("{base}/texts"), "type": "DIRECTORY",
        }));
        inputs.push(json!({
            "path": "/in/tree", "url": format!("{base}/tree"), "type": "DIRECTORY",
        }));
    }
    let task = with(script(make), &json!({ "outputs": outputs }));
    let made = place
        .run(&task, "COMPLETE")
        .await
        .context(base.to_owned())?;
    let delivered = made["logs"][0]["outputs"].as_array().map(Vec::len);
    let expected = if directories { 6 } else { 3 };
    ensure!(delivered == Some(expected), "{base}: {made:#}");
    ensure!(!made.to_string().contains(":right@"), "{base}: {made:#}");

    let read =
        "cd /in; find . -type f | sort | while read -r f; do echo \"$f: $(cat \"$f\")\"; done";
    let task = with(script(read), &json!({ "inputs": inputs }));
    let fetched = place
        .run(&task, "COMPLETE")
        .await
        .context(base.to_owned())?;
    let expected = if directories {
        "./all/a.txt: a\n./all/b.txt: b\n./file: a file\n./texts/a.txt: a\n./texts/b.txt: b\n\
         ./tree/deep/er/empty: \n./tree/deep/t wo: 2\n./tree/one: 1\n"
    } else {
        "./file: a file\n./texts/a.txt: a\n./texts/b.txt: b\n"
    };
    ensure!(stdout(&fetched, 0) == expected, "{base}: {fetched:#}");
    Ok(())
}

/// A directory that nobody else uses.
fn own(base: &str, name: &str) -> String {
    format!(
        "{}/{name}-{}",
        base.trim_end_matches('/'),
        std::process::id()
    )
}

async fn a_claim_takes_and_gives_files_directories_and_wildcards(suite: Arc<Suite>) -> Result<()> {
    round_trip(&suite, "file:///data/round-trip", true).await
}

async fn a_web_server_takes_and_gives_files(suite: Arc<Suite>) -> Result<()> {
    round_trip(&suite, &suite.web.url("/round-trip"), false).await
}

async fn nginx_takes_and_gives_files(suite: Arc<Suite>) -> Result<()> {
    let mut ran = 0;
    for (name, url) in servers("TESK_TEST_HTTP") {
        if !name.contains("webdav") {
            round_trip(&suite, &own(&url, "cluster"), false).await?;
            ran += 1;
        }
    }
    ensure!(ran > 0, "no such server");
    Ok(())
}

async fn webdav_takes_and_gives_files_directories_and_wildcards(suite: Arc<Suite>) -> Result<()> {
    let mut ran = 0;
    for (name, url) in servers("TESK_TEST_HTTP") {
        if name.contains("webdav") {
            round_trip(&suite, &own(&url, "cluster"), true).await?;
            ran += 1;
        }
    }
    ensure!(ran > 0, "no such server");
    Ok(())
}

async fn ftp_takes_and_gives_files_directories_and_wildcards(suite: Arc<Suite>) -> Result<()> {
    let mut ran = 0;
    for (name, url) in servers("TESK_TEST_FTP") {
        if !name.contains("tls") {
            round_trip(&suite, &own(&url, "cluster"), true).await?;
            ran += 1;
        }
    }
    ensure!(ran > 0, "no such server");
    Ok(())
}

async fn ftp_over_tls_takes_and_gives_with_an_authority_of_the_site(
    suite: Arc<Suite>,
) -> Result<()> {
    let mut ran = 0;
    for (name, url) in servers("TESK_TEST_FTP") {
        if name.contains("tls") {
            round_trip(&suite, &own(&url, "tls"), true).await?;
            ran += 1;
        }
    }
    ensure!(ran > 0, "no such server");
    Ok(())
}

async fn s3_takes_and_gives_files_directories_and_wildcards(suite: Arc<Suite>) -> Result<()> {
    round_trip(&suite, &own("s3://bucket", "cluster"), true).await
}

async fn a_large_file_goes_through(suite: Arc<Suite>) -> Result<()> {
    // More than the filer's memory.
    let task = with(
        script(
            "dd if=/dev/urandom of=/task/large bs=1M count=300 2>/dev/null; md5sum </task/large",
        ),
        &json!({
            "outputs": [{ "path": "/task/large", "url": "file:///data/large" }],
            "volumes": ["/task"],
        }),
    );
    let place = suite.place().await?;
    let made = place.run(&task, "COMPLETE").await?;
    ensure!(
        made["logs"][0]["outputs"][0]["size_bytes"] == "314572800",
        "{made:#}"
    );
    let task = with(
        script("md5sum </in/large; rm /in/large"),
        &json!({ "inputs": [{ "path": "/in/large", "url": "file:///data/large" }] }),
    );
    let fetched = place.run(&task, "COMPLETE").await?;
    ensure!(stdout(&made, 0) == stdout(&fetched, 0), "{fetched:#}");
    let empty: Value = with(
        script(": >/task/large"),
        &json!({ "outputs": [{ "path": "/task/large", "url": "file:///data/large" }] }),
    );
    place.run(&empty, "COMPLETE").await?;
    Ok(())
}

async fn a_directory_keeps_its_modes_on_a_claim(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    let url = "file:///data/modes";
    let make = script("mkdir /out/bin; echo 'echo ran' >/out/bin/tool; chmod 750 /out/bin/tool");
    let outputs = json!([{ "path": "/out/bin", "url": url, "type": "DIRECTORY" }]);
    place
        .run(&with(make, &json!({ "outputs": outputs })), "COMPLETE")
        .await?;
    let inputs = json!([{ "path": "/in/bin", "url": url, "type": "DIRECTORY" }]);
    let task = with(
        script("sh /in/bin/tool; test -x /in/bin/tool"),
        &json!({ "inputs": inputs }),
    );
    let task = place.run(&task, "COMPLETE").await?;
    ensure!(stdout(&task, 0) == "ran\n", "{task:#}");
    Ok(())
}

async fn a_storage_that_is_not_served_is_refused(suite: Arc<Suite>) -> Result<()> {
    let place = suite.place().await?;
    for url in [
        "file:///etc/passwd",
        "file:///.tesk/config/filer.toml",
        "gs://x/y",
    ] {
        let inputs = json!([{ "path": "/in/x", "url": url }]);
        let refused = place
            .submit(&with(script("true"), &json!({ "inputs": inputs })))
            .await;
        ensure!(
            refused.is_err_and(|error| error.to_string().contains("400")),
            "{url}"
        );
    }
    // What is written below a claim does not leave it.
    let inputs = json!([{ "path": "/in/x", "url": "file:///data/link" }]);
    let task = place
        .run(
            &with(script("true"), &json!({ "inputs": inputs })),
            "SYSTEM_ERROR",
        )
        .await?;
    ensure!(reasons(&task).contains("/data/link"), "{task:#}");
    Ok(())
}
