//! Files: what is written is what is read, whatever its size and name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, stream};
use tesk_core::storage::{ByteRange, ErrorKind, Source};
use tokio::sync::Notify;

use super::super::context::{Local, content, refused};
use super::needs::{ATOMIC_WRITE, Files, WRITE};
use super::{Case, Context, case};

pub(super) const CASES: &[Case] = &[
    case!(nothing_is_none_and_no_error),
    case!(a_file_below_nothing_is_none),
    case!(an_empty_file_is_a_file: Files),
    case!(one_byte_is_kept: Files),
    case!(usual_part_sizes_and_one_byte_more_or_less_are_kept: Files),
    case!(every_byte_is_kept_as_it_is: Files),
    case!(names_mean_exactly_one_file: Files),
    case!(a_missing_file_is_not_found),
    case!(a_reading_that_is_dropped_disturbs_nothing: Files),
    case!(sixteen_readings_at_once: Files),
    case!(sixteen_writings_at_once: WRITE),
    case!(writing_makes_parents: WRITE),
    case!(writing_shorter_leaves_nothing_of_the_longer: WRITE),
    case!(a_local_file_is_written: WRITE),
    case!(a_file_of_a_storage_is_written: WRITE),
    case!(a_source_that_fails_fails_the_writing: WRITE),
    case!(a_writing_that_failed_leaves_what_was_there: ATOMIC_WRITE),
    case!(a_writing_that_is_dropped_leaves_what_was_there: ATOMIC_WRITE),
    case!(two_writings_of_one_name_leave_one_of_them_whole: ATOMIC_WRITE),
    case!(core_brings_a_file_there_and_back: WRITE),
];

async fn nothing_is_none_and_no_error(context: Context) -> anyhow::Result<()> {
    ensure!(context.stat(&context.url("nothing")).await?.is_none());
    Ok(())
}

async fn a_file_below_nothing_is_none(context: Context) -> anyhow::Result<()> {
    ensure!(
        context
            .stat(&context.url("no/such/directory/file"))
            .await?
            .is_none()
    );
    Ok(())
}

async fn an_empty_file_is_a_file(context: Context) -> anyhow::Result<()> {
    let url = context.put("empty", Bytes::new()).await?;
    context.expect(&url, b"").await
}

async fn one_byte_is_kept(context: Context) -> anyhow::Result<()> {
    let url = context.put("one", &b"\n"[..]).await?;
    context.expect(&url, b"\n").await
}

async fn usual_part_sizes_and_one_byte_more_or_less_are_kept(
    context: Context,
) -> anyhow::Result<()> {
    let parts = [5 << 20, 8 << 20];
    for size in parts.into_iter().flat_map(|part| part - 1..=part + 1) {
        let content = content(size);
        let url = context
            .put(&format!("size-{size}"), content.clone())
            .await?;
        context.expect(&url, &content).await?;
    }
    Ok(())
}

async fn every_byte_is_kept_as_it_is(context: Context) -> anyhow::Result<()> {
    // Text modes, encodings and compression would show.
    let mut content: Vec<u8> = (0..=255).collect();
    content.extend_from_slice(b"\r\n\n\r\r\n \t\xff\xfe\xc3\x28 \x1f\x8b\x08\x00 \x1a EOF\r\n");
    let url = context.put("bytes.txt.gz", content.clone()).await?;
    context.expect(&url, &content).await
}

async fn names_mean_exactly_one_file(context: Context) -> anyhow::Result<()> {
    const NAMES: &[&str] = &[
        "a b",
        "a%20b",
        "a+b",
        "a#b",
        "a?b",
        "a&b=c",
        "a;b",
        "a,b",
        ".hidden",
        "a..b",
        "ä é 漢",
        "(a)[b]{c}",
        "a'b\"c",
        "a*b",
        "a@b",
        "a:b",
        "~a",
        "$a",
        "%",
        "A",
        "a",
        "a.b.c",
        "-rf",
    ];
    let put = |i: usize| {
        let (context, name) = (context.clone(), NAMES[i]);
        async move { context.put(name, format!("{i}")).await.context(name) }
    };
    let urls = try_join_all((0..NAMES.len()).map(put)).await?;
    for (i, url) in urls.iter().enumerate() {
        context
            .expect(url, format!("{i}").as_bytes())
            .await
            .context(NAMES[i])?;
    }
    Ok(())
}

async fn a_missing_file_is_not_found(context: Context) -> anyhow::Result<()> {
    let read = context.read(&context.url("nothing"), ByteRange::FULL).await;
    let error = refused(read, "reading it", &[ErrorKind::NotFound])?;
    ensure!(!error.is_retryable(), "it is called retryable");
    Ok(())
}

async fn a_reading_that_is_dropped_disturbs_nothing(context: Context) -> anyhow::Result<()> {
    let content = content(4 << 20);
    let url = context.put("file", content.clone()).await?;
    for _ in 0..3 {
        let mut opened = context.storage().read(&url, ByteRange::FULL, None).await?;
        opened.bytes.next().await.context("no first chunk")??;
    }
    context.expect(&url, &content).await
}

async fn sixteen_readings_at_once(context: Context) -> anyhow::Result<()> {
    let content = content(1 << 20);
    let url = context.put("file", content.clone()).await?;
    try_join_all((0..16).map(|_| context.expect(&url, &content))).await?;
    Ok(())
}

async fn sixteen_writings_at_once(context: Context) -> anyhow::Result<()> {
    let write = |i: u8| {
        let context = &context;
        async move {
            let content = vec![i; 300_000];
            let url = context
                .put(&format!("d{}/{i}", i % 3), content.clone())
                .await?;
            context.expect(&url, &content).await
        }
    };
    try_join_all((0..16).map(write)).await?;
    Ok(())
}

async fn writing_makes_parents(context: Context) -> anyhow::Result<()> {
    let url = context.put("a/b c/d/file", &b"deep"[..]).await?;
    context.expect(&url, b"deep").await
}

async fn writing_shorter_leaves_nothing_of_the_longer(context: Context) -> anyhow::Result<()> {
    context.put("file", content(100_000)).await?;
    let url = context.put("file", &b"short"[..]).await?;
    context.expect(&url, b"short").await?;
    context.put("file", Bytes::new()).await?;
    context.expect(&url, b"").await
}

async fn a_local_file_is_written(context: Context) -> anyhow::Result<()> {
    let local = Local::new()?;
    let content = content(3_000_000);
    let source = Source::local(&local.write("file", &content)?)?;
    let url = context.url("file");
    context.write(&url, &source).await?;
    context.expect(&url, &content).await
}

async fn a_file_of_a_storage_is_written(context: Context) -> anyhow::Result<()> {
    let content = content(3_000_000);
    let from = context.put("from", content.clone()).await?;
    let info = context.file_info(&from).await?;
    let size = content.len() as u64;
    let source = Source::storage(context.storage().clone(), from, size, info.version);
    let to = context.url("to");
    context.write(&to, &source).await?;
    context.expect(&to, &content).await
}

/// A source that ends in an error halfway: its file is shorter than it was.
async fn failing_source(context: &Context, local: &Local) -> anyhow::Result<Source> {
    let size = context.size_in_parts().await?;
    let path = local.write("shrinking", &content(size))?;
    let source = Source::local(&path)?;
    local.write("shrinking", &content(size / 2))?;
    Ok(source)
}

async fn a_source_that_fails_fails_the_writing(context: Context) -> anyhow::Result<()> {
    let local = Local::new()?;
    let source = failing_source(&context, &local).await?;
    let written = context.storage().write(&context.url("file"), &source).await;
    let error = refused(
        written,
        "writing it",
        &[ErrorKind::Corrupt, ErrorKind::Unavailable],
    )?;
    ensure!(error.is_retryable(), "it is called not retryable: {error}");
    Ok(())
}

async fn a_writing_that_failed_leaves_what_was_there(context: Context) -> anyhow::Result<()> {
    let old = context.put("old", &b"old"[..]).await?;
    let local = Local::new()?;
    for url in [&old, &context.url("new")] {
        let source = failing_source(&context, &local).await?;
        let written = context.storage().write(url, &source).await;
        ensure!(written.is_err(), "writing half a file succeeded");
    }
    context.expect(&old, b"old").await?;
    let new = context.stat(&context.url("new")).await?;
    ensure!(new.is_none(), "half a file is there: {new:?}");
    Ok(())
}

async fn a_writing_that_is_dropped_leaves_what_was_there(context: Context) -> anyhow::Result<()> {
    use tesk_core::storage::{Capabilities, Entry, Opened, Result, Storage, StorageUrl, Version};

    /// A file of which no more than so many bytes ever come.
    #[derive(Debug)]
    struct Stuck(u64, Arc<Notify>);

    #[async_trait::async_trait]
    impl Storage for Stuck {
        fn capabilities(&self) -> Capabilities {
            Capabilities::read_only()
        }
        async fn stat(&self, _: &StorageUrl) -> Result<Option<Entry>> {
            Ok(None)
        }
        async fn read(
            &self,
            _: &StorageUrl,
            range: ByteRange,
            _: Option<&Version>,
        ) -> Result<Opened> {
            let (come, stuck) = (self.0, self.1.clone());
            let end = range.end.unwrap_or(u64::MAX);
            let first = vec![7; end.min(come).saturating_sub(range.start) as usize];
            let rest = stream::once(async move {
                if end <= come {
                    return None;
                }
                stuck.notify_one();
                std::future::pending().await
            });
            let first = stream::iter([Ok(Bytes::from(first))]);
            Ok(first
                .chain(rest.filter_map(std::future::ready))
                .boxed()
                .into())
        }
    }

    let url = context.put("file", &b"old"[..]).await?;
    let (size, stuck) = (
        context.size_in_parts().await? as u64,
        Arc::<Notify>::default(),
    );
    let storage = Arc::new(Stuck(size * 2 / 3, stuck.clone()));
    let source = Source::storage(storage, "none://x".parse()?, size, None);
    tokio::select! {
        ended = context.storage().write(&url, &source) => {
            bail!("writing ended before its source: {ended:?}");
        }
        () = stuck.notified() => {
            // What was read is on its way.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    context.expect(&url, b"old").await?;
    context.put("file", &b"new"[..]).await?;
    context.expect(&url, b"new").await
}

async fn two_writings_of_one_name_leave_one_of_them_whole(context: Context) -> anyhow::Result<()> {
    let url = context.url("d/file");
    for round in 0..4 {
        let contents = [vec![2 * round; 700_000], vec![2 * round + 1; 500_001]];
        let sources = contents.clone().map(Source::bytes);
        let (one, other) = tokio::join!(
            context.write(&url, &sources[0]),
            context.write(&url, &sources[1]),
        );
        // One of them may find the other in its way.
        let done = [one.is_ok(), other.is_ok()];
        ensure!(done.contains(&true), "both failed: {one:?}, {other:?}");
        let read = context.read(&url, ByteRange::FULL).await?;
        let whole = contents.iter().position(|content| *content == read);
        let whole = whole.with_context(|| format!("{} bytes are of neither", read.len()))?;
        ensure!(done[whole], "what is there is of a writing that failed");
    }
    Ok(())
}

async fn core_brings_a_file_there_and_back(context: Context) -> anyhow::Result<()> {
    let (local, engine) = (Local::new()?, context.engine()?);
    let content = content(5_000_001);
    let url = context.url("file");
    engine
        .store_file(&local.write("there", &content)?, &url)
        .await?;
    let moved = engine.fetch_file(&url, &local.path("back")?, false).await?;
    ensure!(moved.size == content.len() as u64);
    ensure!(local.read("back")? == content, "other bytes came back");
    Ok(())
}
