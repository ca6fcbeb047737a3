//! Create, get, list, cancel.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tesk_core::scheduler::store::{IdempotencyKey, RawRecord};
use tesk_core::scheduler::{self, Created, NewTask, Page, Query, TaskId};
use tesk_core::tes::{self, Accepted, ListRequest, Rejection, UrlSecrets, View, page, view};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::{App, output};
use crate::auth::Caller;

/// Documents from this size on are read, and replies written, on a thread of their own: a worker
/// that parses megabytes answers nobody else, and there may be many workers, each with what one
/// takes.
const LARGE: usize = 64 << 10;

/// `CreateTask`. One atomic commit; nothing that can fail follows it.
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if app.stopping.is_cancelled() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    check_content_type(&headers)?;
    let key = idempotency_key(&headers)?;
    let body = app.bodies.read(&headers, body).await?;
    if body.bytes.is_empty() {
        return Err(ApiError::bad_request(
            "the request has no body; it must be a task document",
        ));
    }
    let turn = if body.bytes.len() < LARGE {
        None
    } else {
        Some(turn(&app.large_reads).await?)
    };
    let (accepted, document) = {
        let (bytes, app) = (body.bytes.clone(), app.clone());
        let read = move || {
            let _turn = turn;
            accept(&bytes, &app)
        };
        aside(body.bytes.len(), read).await?
    };
    let Accepted {
        task,
        secrets,
        warnings,
    } = accepted;
    let idempotency = key.map(|key| IdempotencyKey {
        key,
        digest: digest(&document, &secrets),
        ttl: app.idempotency,
    });
    let created = app
        .store
        .create(NewTask {
            id: TaskId::random(),
            owner: caller.owner,
            document,
            name: task.name,
            tags: task.tags.into_iter().flatten().collect(),
            secrets,
            warnings,
            idempotency,
        })
        .await?;
    match created {
        Created::New(id) | Created::Existing(id) => {
            Ok(reply(format!(r#"{{"id":"{id}"}}"#).into_bytes()))
        }
        Created::KeyReused => Err(ApiError::new(
            StatusCode::CONFLICT,
            "this Idempotency-Key was used for another task document",
        )),
    }
}

/// Does what looks at `size` bytes, aside if they are many.
async fn aside<T: Send + 'static>(
    size: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if size < LARGE {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(ApiError::internal)?
}

/// Waits for one of the places in memory that `places` counts.
pub(super) async fn turn(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    let turn = Arc::clone(places).acquire_owned().await;
    turn.map_err(ApiError::internal)
}

/// What is stored of a document, and its text.
fn accept(body: &[u8], app: &App) -> Result<(Accepted, Arc<str>), ApiError> {
    let accepted = tes::accept(body, &app.rules)?;
    let document = serde_json::to_string(&accepted.task).map_err(ApiError::internal)?;
    Ok((accepted, document.into()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value.to_str().unwrap_or_default();
    let essence = essence.split(';').next().unwrap_or_default().trim();
    if essence.is_empty()
        || essence.eq_ignore_ascii_case("application/json")
        || essence.to_ascii_lowercase().ends_with("+json")
    {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "a task document is sent as application/json",
    ))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    if !(1..=255).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(ApiError::bad_request(
            "Idempotency-Key: must be 1 to 255 visible ASCII characters",
        ));
    }
    Ok(Some(value.to_str().unwrap_or_default().to_owned()))
}

/// Of what is stored, so that two spellings of one task are the same; of the passwords too,
/// which the document does not show.
fn digest(document: &str, secrets: &UrlSecrets) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update((document.len() as u64).to_le_bytes());
    digest.update(document);
    for (field, secret) in &secrets.0 {
        for text in [field, secret] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
    }
    digest.finalize().into()
}

/// `GetTask`, `CancelTask` and the output: the method belongs to the whole last segment, of which
/// `:cancel` and `:output` are suffixes.
pub(super) async fn one(
    State(app): State<App>,
    method: Method,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Ok(Path(segment)) = path else {
        return Err(ApiError::no_such_task());
    };
    let query = query.as_deref();
    let (id, action) = match segment.rsplit_once(':') {
        Some((id, action)) => (id, Some(action)),
        None => (&*segment, None),
    };
    match (action, method) {
        (Some("cancel"), Method::POST) => cancel(&app, id, &headers).await,
        (Some("cancel"), _) => Err(ApiError::method_not_allowed("POST")),
        (Some("output"), Method::GET | Method::HEAD) => {
            output::show(&app, id, query, &headers).await
        }
        (Some("output"), _) => Err(ApiError::method_not_allowed("GET, HEAD")),
        (_, Method::GET | Method::HEAD) => show(&app, &segment, query, &headers).await,
        (_, _) => Err(ApiError::method_not_allowed("GET, HEAD")),
    }
}

async fn show(
    app: &App,
    id: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let caller = app.auth.authenticate(headers).await?;
    let view: View = parameters(query)
        .filter(|(name, _)| name == "view")
        .last()
        .map_or(Ok(View::default()), |(_, value)| value.parse())
        .map_err(|error| Rejection::Invalid(vec![error]))?;
    let id: TaskId = id.parse().map_err(|_| ApiError::no_such_task())?;
    let mut place = None;
    let record = if view.needs_document() {
        place = Some(turn(&app.shown).await?);
        app.store.get_raw(&id).await?
    } else {
        app.store.head(&id).await?.map(|head| RawRecord {
            head,
            document: "".into(),
            logs: "".into(),
        })
    };
    let record = record
        .filter(|record| caller.may_see(&record.head.owner))
        .ok_or_else(ApiError::no_such_task)?;
    let size = 64 + record.document.len() + record.logs.len();
    let room = app.replies.room(size)?;
    let write = move || {
        let _place = place;
        let mut out = Vec::with_capacity(size);
        view::write(&mut out, &record, view).map_err(ApiError::internal)?;
        Ok(room.reply(out))
    };
    aside(size, write).await
}

async fn cancel(app: &App, id: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
    let id = visible(app, id, headers).await?;
    scheduler::cancel(&*app.store, &id).await?;
    Ok(reply(b"{}".to_vec()))
}

/// The id of a task that the caller may see.
pub(super) async fn visible(app: &App, id: &str, headers: &HeaderMap) -> Result<TaskId, ApiError> {
    let caller = app.auth.authenticate(headers).await?;
    let id: TaskId = id.parse().map_err(|_| ApiError::no_such_task())?;
    let head = app.store.head(&id).await?;
    head.filter(|head| caller.may_see(&head.owner))
        .ok_or_else(ApiError::no_such_task)?;
    Ok(id)
}

/// `ListTasks`.
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query: Vec<(String, String)> = parameters(query.as_deref()).collect();
    let request = ListRequest::parse(&query)?;
    // Before the store is asked: what it answers is in memory until it is a reply.
    let place = if request.view.needs_document() {
        Some(turn(&app.lists).await?)
    } else {
        None
    };
    let page = app
        .store
        .list(&Query {
            filter: request.filter,
            user: caller.scope(),
            after: request.after,
            limit: request.page_size,
            documents: request.view.needs_document(),
        })
        .await?;
    let size: usize = page
        .tasks
        .iter()
        .map(|task| 64 + task.document.len() + task.logs.len())
        .sum();
    let room = app.replies.room(size)?;
    let write = move || {
        let _place = place;
        let mut out = Vec::with_capacity(64 + size);
        write_page(&mut out, &page, request.view).map_err(ApiError::internal)?;
        Ok(room.reply(out))
    };
    aside(size, write).await
}

fn write_page(out: &mut Vec<u8>, page: &Page, view: View) -> serde_json::Result<()> {
    out.extend_from_slice(br#"{"tasks":["#);
    for (index, task) in page.tasks.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        view::write(out, task, view)?;
    }
    out.push(b']');
    if let Some(position) = &page.next {
        // A token holds nothing that JSON would escape.
        out.extend_from_slice(br#","next_page_token":""#);
        out.extend_from_slice(page::encode(position).as_bytes());
        out.push(b'"');
    }
    out.push(b'}');
    Ok(())
}

/// The decoded parameters of a query string, in their order.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned()
}

fn reply(json: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}
