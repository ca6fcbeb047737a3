//! What only some storages can do.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tesk_core::storage::{EntryKind, ErrorKind, Source, StorageUrl, Upload};

use super::super::Skip;
use super::super::context::{content, refused};
use super::needs::{DIRECTORIES, Files, MODES, PARTS, REMOVE, RENAME, WRITE};
use super::{Case, Context, case};

pub(super) const CASES: &[Case] = &[
    case!(it_claims_what_it_must),
    case!(a_renamed_file_has_its_new_name_only: RENAME, WRITE),
    case!(renaming_replaces_a_file: RENAME, WRITE),
    case!(nothing_cannot_be_renamed: RENAME),
    case!(a_removed_file_is_gone: REMOVE, WRITE),
    case!(removing_nothing_is_fine: REMOVE),
    case!(only_an_empty_directory_is_removed: REMOVE, DIRECTORIES, WRITE),
    case!(modes_are_kept: MODES, WRITE),
    case!(a_local_path_is_the_same_file: Files),
    case!(parts_make_a_whole_in_any_order: PARTS),
    case!(a_part_is_sent_again: PARTS),
    case!(an_upload_is_not_seen_before_it_is_complete: PARTS),
    case!(an_aborted_upload_leaves_nothing: PARTS),
    case!(an_empty_upload_is_an_empty_file: PARTS),
];

async fn it_claims_what_it_must(context: Context) -> anyhow::Result<()> {
    let (must, claims) = (context.at_least(), context.claims());
    for (name, must, claimed) in [
        ("list", must.list, claims.list),
        ("write", must.write, claims.write),
        ("atomic_write", must.atomic_write, claims.atomic_write),
        ("ranges", must.ranges, claims.ranges),
        ("parts", must.parts, claims.parts),
        ("directories", must.directories, claims.directories),
        ("rename", must.rename, claims.rename),
        ("remove", must.remove, claims.remove),
        ("modes", must.modes, claims.modes),
    ] {
        ensure!(claimed || !must, "`{name}` is no longer claimed");
    }
    Ok(())
}

async fn a_renamed_file_has_its_new_name_only(context: Context) -> anyhow::Result<()> {
    let (from, to) = (context.put("from", &b"x"[..]).await?, context.url("to"));
    context.storage().rename(&from, &to).await?;
    ensure!(context.stat(&from).await?.is_none());
    context.expect(&to, b"x").await
}

async fn renaming_replaces_a_file(context: Context) -> anyhow::Result<()> {
    let from = context.put("from", &b"new"[..]).await?;
    let to = context.put("to", &b"older"[..]).await?;
    context.storage().rename(&from, &to).await?;
    context.expect(&to, b"new").await
}

async fn nothing_cannot_be_renamed(context: Context) -> anyhow::Result<()> {
    let (from, to) = (context.url("nothing"), context.url("to"));
    let renamed = context.storage().rename(&from, &to).await;
    refused(renamed, "renaming it", &[ErrorKind::NotFound])?;
    Ok(())
}

async fn a_removed_file_is_gone(context: Context) -> anyhow::Result<()> {
    let url = context.put("file", &b"x"[..]).await?;
    context.storage().remove(&url).await?;
    ensure!(context.stat(&url).await?.is_none());
    Ok(())
}

async fn removing_nothing_is_fine(context: Context) -> anyhow::Result<()> {
    context.storage().remove(&context.url("nothing")).await?;
    context
        .storage()
        .remove(&context.url("no/such/directory"))
        .await?;
    Ok(())
}

async fn only_an_empty_directory_is_removed(context: Context) -> anyhow::Result<()> {
    let file = context.put("d/file", &b"x"[..]).await?;
    let directory = context.url("d");
    ensure!(context.storage().remove(&directory).await.is_err());
    context.expect(&file, b"x").await?;
    context.storage().remove(&file).await?;
    context.storage().remove(&directory).await?;
    ensure!(context.stat(&directory).await?.is_none());
    Ok(())
}

async fn modes_are_kept(context: Context) -> anyhow::Result<()> {
    for mode in [0o644, 0o600, 0o755, 0o444] {
        let url = context.url(&format!("mode-{mode:o}"));
        let source = Source::bytes("x").with_mode(Some(mode));
        context.write(&url, &source).await?;
        let found = context.file_info(&url).await?.mode;
        ensure!(found == Some(mode), "{found:?} instead of {mode:o}");
    }
    Ok(())
}

async fn a_local_path_is_the_same_file(context: Context) -> anyhow::Result<()> {
    let url = context.put("d/file", &b"here"[..]).await?;
    let Some(local) = context.storage().local_path(&url) else {
        bail!(Skip("it is no file system of this machine"));
    };
    let read = std::io::read_to_string(local.root.open_file(&local.path)?)?;
    ensure!(read == "here", "another file");
    Ok(())
}

/// An upload of three parts, and the content that it is for.
async fn upload(context: &Context, url: &StorageUrl) -> anyhow::Result<(Box<dyn Upload>, Vec<u8>)> {
    let content = content(context.size_in_parts().await?);
    let upload = context.storage().begin_upload(url, content.len() as u64);
    let upload = upload.await.context("beginning")?;
    let parts = (content.len() as u64).div_ceil(upload.part_size());
    ensure!(parts == 3, "{} bytes are {parts} parts", content.len());
    Ok((upload, content))
}

/// Sends parts, in this order.
async fn send(
    upload: &dyn Upload,
    parts: impl IntoIterator<Item = u64>,
    content: impl Into<Bytes>,
) -> anyhow::Result<()> {
    let source = Source::bytes(content);
    for index in parts {
        let sent = upload.part(index, &source).await;
        sent.with_context(|| format!("part {index}"))?;
    }
    Ok(())
}

async fn parts_make_a_whole_in_any_order(context: Context) -> anyhow::Result<()> {
    let url = context.url("file");
    let (upload, content) = upload(&context, &url).await?;
    send(&*upload, [2, 1, 0], content.clone()).await?;
    let (written, size) = (upload.complete().await?.size, content.len());
    ensure!(written == size as u64, "it counted {written} bytes");
    context.expect(&url, &content).await
}

async fn a_part_is_sent_again(context: Context) -> anyhow::Result<()> {
    let url = context.url("file");
    let (upload, content) = upload(&context, &url).await?;
    let wrong = vec![b'x'; content.len()];
    send(&*upload, [1], wrong).await?;
    send(&*upload, [0, 1, 2], content.clone()).await?;
    upload.complete().await?;
    context.expect(&url, &content).await
}

async fn an_upload_is_not_seen_before_it_is_complete(context: Context) -> anyhow::Result<()> {
    let url = context.url("file");
    let (upload, content) = upload(&context, &url).await?;
    send(&*upload, [0, 1, 2], content).await?;
    ensure!(context.stat(&url).await?.is_none());
    drop(upload);
    ensure!(context.stat(&url).await?.is_none());
    Ok(())
}

async fn an_aborted_upload_leaves_nothing(context: Context) -> anyhow::Result<()> {
    let url = context.url("file");
    let (upload, content) = upload(&context, &url).await?;
    send(&*upload, [0, 1], content).await?;
    upload.abort().await?;
    ensure!(context.stat(&url).await?.is_none());
    Ok(())
}

async fn an_empty_upload_is_an_empty_file(context: Context) -> anyhow::Result<()> {
    let url = context.url("file");
    let upload = context.storage().begin_upload(&url, 0).await?;
    upload.part(0, &Source::bytes(Bytes::new())).await?;
    upload.complete().await?;
    ensure!(matches!(
        context.stat(&url).await?,
        Some(EntryKind::File(_))
    ));
    context.expect(&url, b"").await
}
