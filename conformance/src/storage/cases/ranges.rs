//! Parts of files, and versions of them.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tesk_core::storage::{ByteRange, Checksum, ErrorKind};

use super::super::Skip;
use super::super::context::{content, read_all, refused};
use super::needs::{Files, NO_RANGES, RANGES, WRITE};
use super::{Case, Context, case};

pub(super) const CASES: &[Case] = &[
    case!(a_range_is_exactly_its_bytes: RANGES, Files),
    case!(a_range_from_the_end_on_is_empty: RANGES, Files),
    case!(a_range_beyond_the_end_is_an_error: RANGES, Files),
    case!(a_range_is_exactly_its_bytes_or_refused_if_not_claimed: NO_RANGES, Files),
    case!(the_present_version_is_read: Files),
    case!(another_version_is_corrupt: Files),
    case!(writing_changes_the_version: WRITE),
    case!(a_checksum_that_is_told_is_of_the_whole_file: Files),
];

async fn a_range_is_exactly_its_bytes(context: Context) -> anyhow::Result<()> {
    let content = content(2_500_000);
    let url = context.put("file", content.clone()).await?;
    for range in [
        0..1,
        0..2_500_000,
        1..2,
        999_999..1_000_001,
        2_499_999..2_500_000,
        5..5,
    ] {
        let read = context.read(&url, range.clone()).await;
        let read = read.with_context(|| format!("{range:?}"))?;
        let expected = &content[range.start as usize..range.end as usize];
        ensure!(
            read == expected,
            "{range:?}: {} bytes, other ones",
            read.len()
        );
    }
    for start in [1, 2_499_999] {
        let read = context.read(&url, ByteRange::from(start)).await?;
        ensure!(
            read == content[start as usize..],
            "{start}..: {} bytes",
            read.len()
        );
    }
    Ok(())
}

async fn a_range_from_the_end_on_is_empty(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"12345"[..]).await?;
    ensure!(context.read(&url, ByteRange::from(5)).await?.is_empty());
    let empty = context.put("empty", Bytes::new()).await?;
    ensure!(context.read(&empty, ByteRange::FULL).await?.is_empty());
    Ok(())
}

async fn a_range_beyond_the_end_is_an_error(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"12345"[..]).await?;
    for range in [3..6, 5..6, 7..9] {
        let read = context.read(&url, range.clone()).await;
        ensure!(read.is_err(), "{range:?} of 5 bytes: {read:?}");
    }
    Ok(())
}

async fn a_range_is_exactly_its_bytes_or_refused_if_not_claimed(
    context: Context,
) -> anyhow::Result<()> {
    let url = context.put("file", &b"12345"[..]).await?;
    for (range, expected) in [
        (ByteRange::from(2), &b"345"[..]),
        ((0..3).into(), b"123"),
        ((1..4).into(), b"234"),
    ] {
        match context.read(&url, range).await {
            Ok(read) => ensure!(read == expected, "{range:?}: {read:?}"),
            read => drop(refused(read, "reading a part", &[ErrorKind::Unsupported])?),
        }
    }
    Ok(())
}

async fn the_present_version_is_read(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"12345"[..]).await?;
    let Some(version) = context.version(&url).await? else {
        bail!(Skip("its files have no versions"));
    };
    let read = context
        .storage()
        .read(&url, ByteRange::FULL, Some(&version));
    ensure!(read_all(read.await?.bytes).await? == b"12345");
    Ok(())
}

async fn another_version_is_corrupt(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"12345"[..]).await?;
    let Some(version) = context.version(&url).await? else {
        bail!(Skip("its files have no versions"));
    };
    context.put("file", &b"1234567"[..]).await?;
    for range in [ByteRange::FULL, ByteRange::from(2), (1..4).into()] {
        let read = match context.storage().read(&url, range, Some(&version)).await {
            Ok(opened) => read_all(opened.bytes).await,
            Err(error) => Err(error),
        };
        refused(read, "reading another version", &[ErrorKind::Corrupt])?;
    }
    Ok(())
}

async fn writing_changes_the_version(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"one"[..]).await?;
    let one = context.version(&url).await?;
    context.put("file", &b"two"[..]).await?;
    let two = context.version(&url).await?;
    ensure!(
        one.is_none() == two.is_none(),
        "it has a version now and then"
    );
    ensure!(one.is_none() || one != two, "both have the version {one:?}");
    Ok(())
}

async fn a_checksum_that_is_told_is_of_the_whole_file(context: Context) -> anyhow::Result<()> {
    let mut told = false;
    for (name, size) in [("empty", 0), ("small", 12_345), ("large", 2_500_000)] {
        let content = content(size);
        let url = context.put(name, content.clone()).await?;
        let mut judge = |checksum: Option<Checksum>, by: &str| {
            told |= checksum.is_some();
            let fits = checksum.as_ref().is_none_or(|it| it.is_of(&content));
            ensure!(fits, "{name}: {by} tells {checksum:?}");
            Ok(())
        };
        judge(context.file_info(&url).await?.checksum, "stat")?;
        let parts = size > 0 && context.claims().ranges;
        let part = parts.then_some((1..2).into());
        for range in [ByteRange::FULL].into_iter().chain(part) {
            let opened = context.storage().read(&url, range, None).await?;
            judge(opened.checksum, &format!("reading {range:?}"))?;
        }
    }
    if !told {
        bail!(Skip("it tells no checksums"));
    }
    Ok(())
}
