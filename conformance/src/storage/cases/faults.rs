//! What networks do.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tesk_core::storage::{ByteRange, ErrorKind, Source};

use super::super::context::{Local, content, refused};
use super::needs::{Files, Network, RANGES, WRITE};
use super::{Case, Context, case};
use crate::proxy::Fault;

pub(super) const CASES: &[Case] = &[
    case!(a_server_that_is_gone_is_unavailable: Network),
    case!(a_connection_cut_at_once_is_worth_a_retry: Network, Files),
    case!(a_reading_cut_midway_is_an_error_and_no_short_file: Network, Files),
    case!(a_writing_cut_midway_is_an_error: Network, WRITE),
    case!(a_cut_connection_does_not_spoil_the_next: Network, Files),
    case!(an_answer_of_noise_is_an_error: Network, Files),
    case!(a_slow_server_is_not_a_failed_one: Network, Files),
    case!(core_resumes_over_a_line_that_keeps_breaking: Network, Files, RANGES),
    case!(core_gets_over_a_server_that_falls_silent: Network, Files),
    case!(core_writes_over_a_line_that_breaks: Network, WRITE),
];

const CONNECTION: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::Corrupt];

async fn a_server_that_is_gone_is_unavailable(context: Context) -> anyhow::Result<()> {
    let (proxy, far) = context.through_proxy().await?;
    drop(proxy);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stat = far.storage().stat(&far.url("file")).await;
    let error = refused(stat, "looking at a file", &[ErrorKind::Unavailable])?;
    ensure!(error.is_retryable(), "it is called not retryable");
    Ok(())
}

async fn a_connection_cut_at_once_is_worth_a_retry(context: Context) -> anyhow::Result<()> {
    context.put("file", &b"here"[..]).await?;
    let (proxy, far) = context.through_proxy().await?;
    // A client may try a few connections of its own.
    proxy.faults([Fault::Refuse; 8]);
    let error = refused(
        far.read(&far.url("file"), ByteRange::FULL).await,
        "reading",
        CONNECTION,
    )?;
    ensure!(error.is_retryable(), "it is called not retryable");
    proxy.faults([]);
    far.expect(&far.url("file"), b"here").await
}

async fn a_reading_cut_midway_is_an_error_and_no_short_file(
    context: Context,
) -> anyhow::Result<()> {
    context.put("file", content(2_000_000)).await?;
    let (proxy, far) = context.through_proxy().await?;
    proxy.faults([Fault::CutAfter(1_000_000); 8]);
    let error = refused(
        far.read(&far.url("file"), ByteRange::FULL).await,
        "reading",
        CONNECTION,
    )?;
    ensure!(error.is_retryable(), "it is called not retryable");
    Ok(())
}

async fn a_writing_cut_midway_is_an_error(context: Context) -> anyhow::Result<()> {
    let (proxy, far) = context.through_proxy().await?;
    proxy.faults([Fault::CutUploadAfter(1_000_000); 8]);
    let source = Source::bytes(content(3_000_000));
    let written = far.storage().write(&far.url("file"), &source).await;
    let error = refused(written, "writing", CONNECTION)?;
    ensure!(error.is_retryable(), "it is called not retryable");
    if context.claims().atomic_write {
        let found = context.stat(&context.url("file")).await?;
        ensure!(found.is_none(), "half a file is there: {found:?}");
    }
    proxy.faults([]);
    // Connections that were opened before and kept are still cut.
    let mut tries = 1;
    while let Err(error) = far.write(&far.url("file"), &source).await {
        ensure!(tries < 8, "it cannot be written any more: {error:?}");
        tries += 1;
    }
    context
        .expect(&context.url("file"), &content(3_000_000))
        .await
}

async fn a_cut_connection_does_not_spoil_the_next(context: Context) -> anyhow::Result<()> {
    let content = content(2_000_000);
    context.put("file", content.clone()).await?;
    let (proxy, far) = context.through_proxy().await?;
    for _ in 0..5 {
        proxy.faults([Fault::CutAfter(500_000); 3]);
        let _ = far.read(&far.url("file"), ByteRange::FULL).await;
        proxy.faults([]);
        far.expect(&far.url("file"), &content).await?;
    }
    Ok(())
}

async fn an_answer_of_noise_is_an_error(context: Context) -> anyhow::Result<()> {
    context.put("file", &b"here"[..]).await?;
    let (proxy, far) = context.through_proxy().await?;
    let (storage, url) = (far.storage(), far.url("file"));
    proxy.faults([Fault::Garbage; 100]);
    let found = storage.stat(&url).await;
    ensure!(found.is_err(), "stat tells {found:?}");
    let read = far.read(&url, ByteRange::FULL).await;
    ensure!(read.is_err(), "{read:?} was read");
    if far.claims().list {
        let listed = far.list(far.directory()).await;
        ensure!(listed.is_err(), "{listed:?} was listed");
    }
    if far.claims().write {
        let written = storage.write(&url, &Source::bytes("here")).await;
        ensure!(written.is_err(), "{written:?} was written");
    }
    proxy.faults([]);
    far.expect(&url, b"here").await
}

async fn a_slow_server_is_not_a_failed_one(context: Context) -> anyhow::Result<()> {
    let content = content(600_000);
    context.put("file", content.clone()).await?;
    let (proxy, far) = context.through_proxy().await?;
    proxy.faults([Fault::Slow(200_000); 8]);
    let (local, engine) = (Local::new()?, far.engine()?);
    let begun = Instant::now();
    engine
        .fetch_file(&far.url("file"), &local.path("file")?, false)
        .await?;
    ensure!(local.read("file")? == content, "other bytes came");
    // Longer than the progress timeout: silence fails, slowness does not.
    ensure!(
        begun.elapsed() > Duration::from_millis(2100),
        "it was not slow"
    );
    Ok(())
}

async fn core_resumes_over_a_line_that_keeps_breaking(context: Context) -> anyhow::Result<()> {
    let content = content(12_000_000);
    let url = context.put("file", content.clone()).await?;
    context.version(&url).await?;
    let (proxy, far) = context.through_proxy().await?;
    proxy.faults([Fault::CutAfter(1_300_000); 60]);
    // In one stream: some protocols cannot say where a range ends, and servers send past it.
    let (local, engine) = (Local::new()?, far.engine_with_ranges(32)?);
    engine
        .fetch_file(&far.url("file"), &local.path("file")?, false)
        .await?;
    ensure!(local.read("file")? == content, "other bytes came");
    let (connections, bytes) = (proxy.connections(), proxy.bytes_to_client());
    ensure!(connections > 8, "{connections} connections only");
    ensure!(
        bytes <= content.len() as u64 * 11 / 10,
        "{bytes} bytes came for a file of {}",
        content.len()
    );
    Ok(())
}

async fn core_gets_over_a_server_that_falls_silent(context: Context) -> anyhow::Result<()> {
    let content = content(1_500_000);
    context.put("file", content.clone()).await?;
    let (proxy, far) = context.through_proxy().await?;
    proxy.faults([Fault::StallAfter(700_000), Fault::StallAfter(10)]);
    let (local, engine) = (Local::new()?, far.engine()?);
    engine
        .fetch_file(&far.url("file"), &local.path("file")?, false)
        .await?;
    ensure!(local.read("file")? == content, "other bytes came");
    Ok(())
}

async fn core_writes_over_a_line_that_breaks(context: Context) -> anyhow::Result<()> {
    let content = content(3_000_000);
    let (proxy, far) = context.through_proxy().await?;
    // The one after them is good: what was begun can be removed.
    proxy.faults([Fault::CutUploadAfter(1_000_000), Fault::Refuse]);
    let (local, engine) = (Local::new()?, far.engine()?);
    engine
        .store_file(&local.write("file", &content)?, &far.url("file"))
        .await?;
    context.expect(&context.url("file"), &content).await
}
