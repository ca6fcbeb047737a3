//! Listings and directories.

use anyhow::ensure;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use tesk_core::storage::{ByteRange, EntryKind, ErrorKind};

use super::super::context::{Local, refused};
use super::needs::{DIRECTORIES, Files, LIST, WRITE};
use super::{Case, Context, case};

pub(super) const CASES: &[Case] = &[
    case!(a_directory_is_a_directory: LIST, Files),
    case!(a_listing_has_every_file_with_its_size: LIST, Files),
    case!(a_listing_is_of_this_directory_only: LIST, Files),
    case!(a_listed_path_leads_to_its_file: LIST, Files),
    case!(a_listing_of_1500_files_is_whole: LIST, Files),
    case!(a_listing_that_is_dropped_disturbs_nothing: LIST, Files),
    case!(a_listing_of_nothing_is_not_found: LIST),
    case!(a_listing_of_a_file_is_invalid: LIST, Files),
    case!(a_directory_is_not_read: LIST, Files),
    case!(a_directory_is_not_overwritten: DIRECTORIES, WRITE),
    case!(nothing_is_written_below_a_file: DIRECTORIES, WRITE),
    case!(an_empty_directory_is_made_and_listed: DIRECTORIES, LIST),
    case!(a_directory_is_made_twice_and_with_parents: DIRECTORIES),
    case!(core_fetches_a_directory: LIST, Files),
];

async fn a_directory_is_a_directory(context: Context) -> anyhow::Result<()> {
    context.put("d/file", &b"x"[..]).await?;
    let found = context.stat(&context.url("d")).await?;
    ensure!(found == Some(EntryKind::Directory), "stat finds {found:?}");
    Ok(())
}

/// The files of a listing with their sizes.
async fn files(context: &Context, directory: &str) -> anyhow::Result<Vec<(String, Option<u64>)>> {
    let entries = context.list(&context.url(directory)).await?;
    let files = entries.into_iter().filter_map(|entry| match entry.kind {
        EntryKind::File(info) => Some((entry.path, info.size)),
        EntryKind::Directory => None,
    });
    Ok(files.collect())
}

async fn a_listing_has_every_file_with_its_size(context: Context) -> anyhow::Result<()> {
    for (name, size) in [
        ("d/a", 0),
        ("d/b/c", 1),
        ("d/b/d/e", 2),
        ("d/.hidden/.f", 3),
    ] {
        context.put(name, vec![b'x'; size]).await?;
    }
    let files = files(&context, "d").await?;
    let expected = [(".hidden/.f", 3), ("a", 0), ("b/c", 1), ("b/d/e", 2)];
    let expected = expected.map(|(path, size)| (path.to_owned(), size));
    ensure!(
        files
            .iter()
            .map(|(path, _)| path)
            .eq(expected.iter().map(|(path, _)| path)),
        "{files:?}"
    );
    for ((path, found), (_, size)) in files.iter().zip(expected) {
        ensure!(
            found.is_none_or(|found| found == size),
            "{path} has {found:?} bytes"
        );
    }
    Ok(())
}

async fn a_listing_is_of_this_directory_only(context: Context) -> anyhow::Result<()> {
    for name in ["d/in", "d2/out", "dd", "e"] {
        context.put(name, &b"x"[..]).await?;
    }
    let files = files(&context, "d").await?;
    ensure!(files.len() == 1 && files[0].0 == "in", "{files:?}");
    Ok(())
}

async fn a_listed_path_leads_to_its_file(context: Context) -> anyhow::Result<()> {
    let names = [
        "a b", "a%20b", "a+b", "a#b", "a?b", "a;b", "ä", ".h", "s p/%41", "-x", "a=b",
    ];
    for name in names {
        context.put(&format!("d/{name}"), name.to_owned()).await?;
    }
    let directory = context.url("d");
    let files = files(&context, "d").await?;
    ensure!(files.len() == names.len(), "{files:?}");
    for (path, _) in files {
        context
            .expect(&directory.join(&path), path.as_bytes())
            .await?;
    }
    Ok(())
}

async fn a_listing_of_1500_files_is_whole(context: Context) -> anyhow::Result<()> {
    let put = |i| {
        let context = &context;
        async move { context.put(&format!("d/{i:04}"), Bytes::new()).await }
    };
    let mut putting = stream::iter(0..1500).map(put).buffer_unordered(16);
    while let Some(done) = putting.next().await {
        done?;
    }
    let files = files(&context, "d").await?;
    ensure!(files.len() == 1500, "{} files are listed", files.len());
    let right = files
        .iter()
        .enumerate()
        .all(|(i, (path, _))| *path == format!("{i:04}"));
    ensure!(right, "a file is missing, and another listed twice");
    Ok(())
}

async fn a_listing_that_is_dropped_disturbs_nothing(context: Context) -> anyhow::Result<()> {
    for i in 0..20 {
        context.put(&format!("d/{i}"), &b"x"[..]).await?;
    }
    for _ in 0..3 {
        let mut entries = context.storage().list(&context.url("d")).await?;
        entries.next().await;
    }
    ensure!(files(&context, "d").await?.len() == 20);
    Ok(())
}

async fn a_listing_of_nothing_is_not_found(context: Context) -> anyhow::Result<()> {
    let listed = context.list(&context.url("nothing")).await;
    refused(listed, "listing it", &[ErrorKind::NotFound])?;
    Ok(())
}

async fn a_listing_of_a_file_is_invalid(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"x"[..]).await?;
    refused(
        context.list(&url).await,
        "listing it",
        &[ErrorKind::Invalid],
    )?;
    Ok(())
}

async fn a_directory_is_not_read(context: Context) -> anyhow::Result<()> {
    context.put("d/file", &b"x"[..]).await?;
    let read = context.read(&context.url("d"), ByteRange::FULL).await;
    // Where directories are only parts of names, nothing of that name is there.
    let kinds = if context.claims().directories {
        &[ErrorKind::Invalid][..]
    } else {
        &[ErrorKind::Invalid, ErrorKind::NotFound]
    };
    refused(read, "reading it", kinds)?;
    Ok(())
}

async fn a_directory_is_not_overwritten(context: Context) -> anyhow::Result<()> {
    let file = context.put("d/file", &b"x"[..]).await?;
    let source = tesk_core::storage::Source::bytes("y");
    let written = context.storage().write(&context.url("d"), &source).await;
    refused(written, "writing to it", &[ErrorKind::Invalid])?;
    context.expect(&file, b"x").await
}

async fn nothing_is_written_below_a_file(context: Context) -> anyhow::Result<()> {
    let file = context.put("file", &b"x"[..]).await?;
    let source = tesk_core::storage::Source::bytes("y");
    let written = context
        .storage()
        .write(&context.url("file/below"), &source)
        .await;
    let Err(error) = written else {
        anyhow::bail!("writing below a file succeeded");
    };
    ensure!(!error.is_retryable(), "it is called retryable: {error}");
    context.expect(&file, b"x").await
}

async fn an_empty_directory_is_made_and_listed(context: Context) -> anyhow::Result<()> {
    context
        .storage()
        .make_directory(&context.url("d/empty"))
        .await?;
    let entries = context.list(&context.url("d")).await?;
    let paths: Vec<_> = entries
        .iter()
        .map(|e| e.path.trim_end_matches('/'))
        .collect();
    ensure!(
        paths == ["empty"] && entries[0].kind == EntryKind::Directory,
        "{entries:?}"
    );
    ensure!(context.list(&context.url("d/empty")).await?.is_empty());
    Ok(())
}

async fn a_directory_is_made_twice_and_with_parents(context: Context) -> anyhow::Result<()> {
    let url = context.url("a/b c/d");
    for _ in 0..2 {
        context.storage().make_directory(&url).await?;
        let found = context.stat(&url).await?;
        ensure!(found == Some(EntryKind::Directory), "stat finds {found:?}");
    }
    Ok(())
}

async fn core_fetches_a_directory(context: Context) -> anyhow::Result<()> {
    for i in 0..40 {
        context
            .put(&format!("d/{}/f {i}", i % 3), format!("{i}"))
            .await?;
    }
    let local = Local::new()?;
    let engine = context.engine()?;
    let moved = engine
        .fetch_directory(&context.url("d"), &local.path("to")?)
        .await?;
    ensure!(moved.files == 40, "{} files came", moved.files);
    for i in 0..40 {
        let read = local.read(&format!("to/{}/f {i}", i % 3))?;
        ensure!(read == format!("{i}").as_bytes(), "{i}");
    }
    Ok(())
}
