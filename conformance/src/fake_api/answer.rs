//! From requests to answers.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::state::Refusal;
use super::{Body, BoxError, Call, FakeApi, Fault, watch};

/// Bytes of a request's body.
const MAX_REQUEST: usize = 3 << 20;

/// Where a request goes.
pub(super) struct Place {
    pub(super) api_version: String,
    pub(super) namespace: String,
    pub(super) plural: String,
    /// The path up to the plural.
    pub(super) collection: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl Place {
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (api_version, rest) = match parts.as_slice() {
            ["api", version, "namespaces", rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, "namespaces", rest @ ..] => {
                (format!("{group}/{version}"), rest)
            }
            _ => return None,
        };
        let [namespace, plural, rest @ ..] = rest else {
            return None;
        };
        let depth = parts.len() - rest.len();
        Some(Self {
            api_version,
            namespace: (*namespace).to_owned(),
            plural: (*plural).to_owned(),
            collection: format!("/{}", parts[..depth].join("/")),
            name: rest.first().map(|name| (*name).to_owned()),
            subresource: rest.get(1).map(|name| (*name).to_owned()),
        })
    }

    pub(super) fn not_found(&self, name: &str) -> Refusal {
        (
            404,
            "NotFound",
            format!("{} \"{name}\" not found", self.plural),
        )
    }
}

/// The parameters of a request.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// Whether an object is selected, by labels and by fields.
    pub(super) fn select(&self, object: &Value) -> bool {
        terms(self.get("labelSelector")).all(|(key, equal, value)| {
            let label = object["metadata"]["labels"][key].as_str();
            match value {
                Some(value) => (label == Some(value)) == equal,
                None => label.is_some() == equal,
            }
        }) && terms(self.get("fieldSelector")).all(|(path, equal, value)| {
            let pointer = format!("/{}", path.replace('.', "/"));
            let field = object.pointer(&pointer).and_then(Value::as_str);
            (field.unwrap_or_default() == value.unwrap_or_default()) == equal
        })
    }
}

/// The terms of a selector: key, whether it must be equal, value (`None`: whether it is there).
fn terms(selector: &str) -> impl Iterator<Item = (&str, bool, Option<&str>)> {
    selector
        .split(',')
        .filter(|term| !term.is_empty())
        .map(|term| {
            if let Some((key, value)) = term.split_once("!=") {
                (key, false, Some(value))
            } else if let Some((key, value)) = term.split_once('=') {
                (key, true, Some(value.trim_start_matches('=')))
            } else if let Some(key) = term.strip_prefix('!') {
                (key, false, None)
            } else {
                (term, true, None)
            }
        })
}

impl FakeApi {
    pub(super) async fn answer(
        &self,
        parts: &Parts,
        body: &[u8],
    ) -> Result<Response<Body>, BoxError> {
        if parts.uri.path() == "/version" {
            let version = json!({
                "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            return Ok(reply(200, &version));
        }
        let Some(place) = Place::parse(parts.uri.path()) else {
            let message = "the server could not find the requested resource";
            return Ok(refusal(&(404, "NotFound", message.to_owned())));
        };
        let query = parts.uri.query().unwrap_or_default();
        let parameters = Parameters(
            url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        );
        let watch = matches!(parameters.get("watch"), "true" | "1");
        let verb = match (&parts.method, &place.name) {
            (&Method::GET, Some(_)) => "get",
            (&Method::GET, None) if watch => "watch",
            (&Method::GET, None) => "list",
            (&Method::POST, _) => "create",
            (&Method::PUT, Some(_)) => "update",
            (&Method::PATCH, Some(_)) => "patch",
            (&Method::DELETE, Some(_)) => "delete",
            (&Method::DELETE, None) => "deletecollection",
            _ => return Ok(refusal(&(405, "MethodNotAllowed", String::new()))),
        };
        let call = Call {
            verb,
            resource: match &place.subresource {
                Some(sub) => format!("{}/{sub}", place.plural),
                None => place.plural.clone(),
            },
            name: place.name.clone().unwrap_or_default(),
        };
        let fault = self.fault(&call);
        match &fault {
            Some(Fault::Refuse(code)) => {
                return Ok(refused(*code, format!("{verb} is to fail")));
            }
            Some(Fault::RefuseWith(code, message)) => return Ok(refused(*code, message.clone())),
            Some(Fault::Lose) => return Err("the connection was reset".into()),
            Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LoseAnswer) | None => {}
        }
        let accept = parts.headers.get("accept").and_then(|v| v.to_str().ok());
        let metadata = accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata"));
        let kind = parts
            .headers
            .get("content-type")
            .and_then(|v| v.to_str().ok());
        let log = verb == "get" && place.subresource.as_deref() == Some("log");
        let answer = if log {
            self.log(&place)
        } else if watch {
            watch::stream(self, &place, parameters, metadata)
        } else if body.len() > MAX_REQUEST {
            let message = format!("Request entity too large: limit is {MAX_REQUEST}");
            refusal(&(413, "RequestEntityTooLarge", message))
        } else {
            match self.carry_out(verb, &place, &parameters, kind.unwrap_or_default(), body) {
                Ok((code, value)) => reply(code, &shown(value, metadata)),
                Err(refused) => refusal(&refused),
            }
        };
        self.announce();
        match fault {
            Some(Fault::LoseAnswer) => Err("the connection was reset".into()),
            _ => Ok(answer),
        }
    }

    fn log(&self, place: &Place) -> Response<Body> {
        let name = place.name.as_deref().unwrap_or_default();
        let Some(pod) = self.state().get(&place.collection, name) else {
            return refusal(&place.not_found(name));
        };
        match pod["log"].as_str() {
            Some(log) => {
                let body = Full::new(Bytes::from(log.to_owned()));
                answer_of(200, body.map_err(|never| match never {}).boxed_unsync())
            }
            None => refusal(&(400, "BadRequest", "the container has no log".to_owned())),
        }
    }

    fn carry_out(
        &self,
        verb: &str,
        place: &Place,
        parameters: &Parameters,
        content_type: &str,
        body: &[u8],
    ) -> Result<(u16, Value), Refusal> {
        let bad = |error: serde_json::Error| (400, "BadRequest", error.to_string());
        let body: Value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(body).map_err(bad)?
        };
        let name = place.name.as_deref().unwrap_or_default();
        let dry_run = parameters.get("dryRun") == "All";
        let mut state = self.state();
        let current = |state: &super::State| {
            let object = state.get(&place.collection, name);
            object.ok_or_else(|| place.not_found(name))
        };
        let done = match verb {
            "get" => current(&state)?,
            "list" => return list(&state, place, parameters),
            "create" => return Ok((201, (*state.create(place, body, dry_run)?).clone())),
            "update" => state.replace(place, name, body, dry_run)?,
            "patch" => {
                let apply = content_type.contains("apply-patch");
                if apply && state.get(&place.collection, name).is_none() {
                    return Ok((201, (*state.create(place, body, dry_run)?).clone()));
                }
                if content_type.contains("json-patch") {
                    return Err((415, "UnsupportedMediaType", "no JSON patches here".into()));
                }
                let mut object = (*current(&state)?).clone();
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    // Only a version that the patch itself names is compared.
                    metadata.remove("resourceVersion");
                }
                let by_name = apply || content_type.contains("strategic");
                merge(&mut object, &body, by_name);
                state.replace(place, name, object, dry_run)?
            }
            "delete" => {
                if dry_run {
                    current(&state)?
                } else {
                    state.delete(place, name, &body)?
                }
            }
            _ => {
                let selected = state.list(&place.collection, "");
                let names: Vec<String> = selected
                    .filter(|object| parameters.select(object))
                    .filter_map(|object| object["metadata"]["name"].as_str())
                    .map(str::to_owned)
                    .collect();
                for name in names {
                    state.delete(place, &name, &body)?;
                }
                return list(&state, place, parameters);
            }
        };
        Ok((200, (*done).clone()))
    }
}

/// One page. A later page shows what is there now, under the version of the first: a watch
/// from there tells of all that changed meanwhile.
fn list(
    state: &super::State,
    place: &Place,
    parameters: &Parameters,
) -> Result<(u16, Value), Refusal> {
    let token = parameters.get("continue");
    let (version, after) = match token.split_once(':') {
        Some((version, after)) => (version.parse().unwrap_or_default(), after),
        None => (state.version(), ""),
    };
    if version < state.compacted {
        return Err((410, "Expired", "the continue parameter is too old".into()));
    }
    let limit: usize = parameters.get("limit").parse().unwrap_or(0);
    let mut items: Vec<Value> = Vec::new();
    let mut next = None;
    for object in state.list(&place.collection, after) {
        if !parameters.select(object) {
            continue;
        }
        if limit > 0 && items.len() == limit {
            let last = &items[limit - 1]["metadata"]["name"];
            next = Some(format!("{version}:{}", last.as_str().unwrap_or_default()));
            break;
        }
        items.push((**object).clone());
    }
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(next) = next {
        metadata["continue"] = json!(next);
    }
    let kind = "List";
    Ok((
        200,
        json!({ "kind": kind, "apiVersion": place.api_version, "metadata": metadata, "items": items }),
    ))
}

/// A merge patch; a strategic one knows the entries of a list by their names.
fn merge(target: &mut Value, patch: &Value, by_name: bool) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        let named = |list: &Value| {
            let list = list.as_array().filter(|_| by_name);
            list.is_some_and(|all| all.iter().all(|entry| entry["name"].is_string()))
        };
        if value.is_null() {
            if let Some(target) = target.as_object_mut() {
                target.remove(key);
            }
        } else if named(value) && named(&target[key]) {
            let (Some(new), Some(old)) = (value.as_array(), target[key].as_array_mut()) else {
                continue;
            };
            for entry in new {
                match old.iter_mut().find(|o| o["name"] == entry["name"]) {
                    Some(old) => merge(old, entry, by_name),
                    None => old.push(entry.clone()),
                }
            }
        } else {
            merge(&mut target[key], value, by_name);
        }
    }
}

/// The object, each object of the list, or only their metadata.
pub(super) fn shown(mut value: Value, metadata_only: bool) -> Value {
    if !metadata_only {
        return value;
    }
    if let Some(items) = value["items"].as_array_mut() {
        for item in items {
            *item = shown(item.take(), true);
        }
        value["kind"] = json!("PartialObjectMetadataList");
        value["apiVersion"] = json!("meta.k8s.io/v1");
        return value;
    }
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value["metadata"],
    })
}

pub(super) fn status((code, reason, message): &Refusal) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

/// A refusal with the usual reason of its code.
fn refused(code: u16, message: String) -> Response<Body> {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        500.. => "InternalError",
        _ => "Forbidden",
    };
    refusal(&(code, reason, message))
}

fn refusal(refused: &Refusal) -> Response<Body> {
    reply(refused.0, &status(refused))
}

fn reply(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string()));
    answer_of(code, body.map_err(|never| match never {}).boxed_unsync())
}

pub(super) fn answer_of(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}
