//! What is not claimed is refused, and refusals hold no secret.

use anyhow::ensure;
use tesk_core::storage::{ByteRange, Error, ErrorKind, Source};

use super::super::context::refused;
use super::super::watched::MARK;
use super::needs::{LockedOut, NO_DIRECTORIES, NO_LIST, NO_PARTS, NO_REMOVE, NO_RENAME, NO_WRITE};
use super::{Case, Context, case};

pub(super) const CASES: &[Case] = &[
    case!(listing_is_refused_if_not_claimed: NO_LIST),
    case!(writing_is_refused_if_not_claimed: NO_WRITE),
    case!(parts_are_refused_if_not_claimed: NO_PARTS),
    case!(making_directories_is_refused_if_not_claimed: NO_DIRECTORIES),
    case!(renaming_is_refused_if_not_claimed: NO_RENAME),
    case!(removing_is_refused_if_not_claimed: NO_REMOVE),
    case!(wrong_credentials_are_told_apart: LockedOut),
    case!(an_error_holds_no_secret_of_its_address),
];

fn unsupported<T>(result: Result<T, Error>) -> anyhow::Result<()> {
    let error = refused(result, "it", &[ErrorKind::Unsupported])?;
    ensure!(!error.is_retryable(), "it is called retryable");
    Ok(())
}

async fn listing_is_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    unsupported(context.list(context.directory()).await)
}

async fn writing_is_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    // An empty file is what a plugin that only starts to write would lose.
    for content in ["", "x"] {
        let source = Source::bytes(content);
        unsupported(context.storage().write(&context.url("file"), &source).await)?;
    }
    Ok(())
}

async fn parts_are_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    unsupported(
        context
            .storage()
            .begin_upload(&context.url("file"), 1)
            .await,
    )
}

async fn making_directories_is_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    unsupported(context.storage().make_directory(&context.url("d")).await)
}

async fn renaming_is_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    unsupported(
        context
            .storage()
            .rename(&context.url("a"), &context.url("b"))
            .await,
    )
}

async fn removing_is_refused_if_not_claimed(context: Context) -> anyhow::Result<()> {
    unsupported(context.storage().remove(&context.url("file")).await)
}

async fn wrong_credentials_are_told_apart(context: Context) -> anyhow::Result<()> {
    let (storage, url) = context.locked_out()?;
    let kinds = [ErrorKind::Unauthenticated, ErrorKind::Denied];
    let error = refused(storage.stat(url).await, "looking at the file", &kinds)?;
    ensure!(!error.is_retryable(), "it is called retryable");
    let read = storage.read(url, ByteRange::FULL, None).await;
    refused(read, "reading the file", &kinds)?;
    Ok(())
}

/// Errors are looked at in every case; here there is more to be told.
async fn an_error_holds_no_secret_of_its_address(context: Context) -> anyhow::Result<()> {
    let query = context.directory().path() == context.directory().path_and_rest();
    let mut url = context.url("nothing");
    if query && url.scheme() != "s3" {
        url = format!("{}?X-Signature={MARK}-q", url.to_secret_string()).parse()?;
    }
    let url = url.with_credentials(Some("somebody".into()), Some(format!("{MARK}-p")));
    let read = context.read(&url, ByteRange::FULL).await;
    ensure!(read.is_err(), "reading nothing succeeded");
    // Some of these may succeed.
    let _ = context.storage().stat(&url).await;
    let _ = context.list(&url).await;
    let _ = context.storage().write(&url, &Source::bytes("x")).await;
    Ok(())
}
