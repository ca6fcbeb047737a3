//! The OpenAPI 3.1 description of the service, made from the types that it serves.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use tesk_core::tes::Task;
use tesk_core::tes::reply::{CancelReply, CreateReply, ListReply, ServiceInfo, TaskReply};

use super::App;
use super::error::ErrorBody;
use super::info::LegacyServiceInfo;

pub(super) async fn serve(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        app.openapi.clone(),
    )
}

/// The document. In `open` mode it asks for no credentials.
pub fn document(open: bool) -> Value {
    let security = if open {
        json!([])
    } else {
        json!([{ "bearer": [] }, { "basic": [] }])
    };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tesk",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "GA4GH Task Execution Service 1.1",
            "description": "Runs tasks: inputs, container commands, outputs. A task is created, then polled until its state is COMPLETE, EXECUTOR_ERROR, SYSTEM_ERROR, CANCELED or PREEMPTED.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" }
        },
        // Relative to the place of this document, so that it is right below every base.
        "servers": [{ "url": "../v1" }],
        "security": security,
        "tags": [
            { "name": "tasks", "description": "Create, watch and cancel tasks." },
            { "name": "service", "description": "What this service is and offers." }
        ],
        "paths": paths(),
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer" },
                "basic": { "type": "http", "scheme": "basic" }
            }
        }
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn content(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

/// The replies of an operation: the good one, and those of `errors`.
fn responses(text: &str, schema: &Value, errors: &[(&str, &str)]) -> Value {
    let mut all = Map::new();
    all.insert(
        "200".into(),
        json!({ "description": text, "content": content(schema) }),
    );
    for (status, text) in errors {
        all.insert(
            (*status).to_owned(),
            json!({ "description": text, "content": content(&reference("Error")) }),
        );
    }
    all.insert(
        "default".into(),
        json!({ "description": "Any other failure.", "content": content(&reference("Error")) }),
    );
    Value::Object(all)
}

fn parameter(name: &str, text: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": text, "schema": schema })
}

fn paths() -> Value {
    let view = parameter(
        "view",
        "How much of each task: MINIMAL (the default) is id and state; BASIC leaves out contents, captured output and system logs; FULL is all.",
        &json!({ "type": "string", "enum": ["MINIMAL", "BASIC", "FULL"], "default": "MINIMAL" }),
    );
    let id = json!({
        "name": "id", "in": "path", "required": true,
        "description": "The id that CreateTask gave.", "schema": { "type": "string" }
    });
    let strings = json!({ "type": "array", "items": { "type": "string" } });
    let no_task = ("404", "There is no such task.");
    let mut output = responses("The output.", &json!({}), &[no_task]);
    output["200"]["content"] = json!({ "text/plain": { "schema": { "type": "string" } } });
    json!({
        "/service-info": { "get": {
            "operationId": "GetServiceInfo", "tags": ["service"], "security": [],
            "summary": "What this service is, and which storages tasks may use",
            "responses": responses("The description.", &reference("ServiceInfo"), &[])
        }},
        "/tasks/service-info": { "get": {
            "operationId": "GetLegacyServiceInfo", "tags": ["service"], "security": [],
            "deprecated": true,
            "summary": "The same for clients of TES 0.4",
            "responses": responses("The description.", &reference("LegacyServiceInfo"), &[])
        }},
        "/tasks": {
            "get": {
                "operationId": "ListTasks", "tags": ["tasks"],
                "summary": "Tasks, newest first",
                "parameters": [
                    parameter("name_prefix", "Only tasks whose name begins with this.", &json!({ "type": "string" })),
                    parameter("state", "Only tasks in this state.", &reference("State")),
                    parameter("tag_key", "Only tasks with this tag; repeated, all must hold. Paired by position with tag_value. At most 32 different ones.", &strings),
                    parameter("tag_value", "The value that the tag at the same position must have; empty is any.", &strings),
                    parameter("page_size", "Tasks on a page.", &json!({ "type": "integer", "minimum": 1, "maximum": 2047, "default": 256 })),
                    parameter("page_token", "The next_page_token of the page before.", &json!({ "type": "string" })),
                    view
                ],
                "responses": responses("A page of tasks.", &reference("ListReply"), &[("400", "A parameter has a value that is not allowed.")])
            },
            "post": {
                "operationId": "CreateTask", "tags": ["tasks"],
                "summary": "Create a task",
                "description": "The task is stored when this answers. It runs as soon as there is room.",
                "parameters": [{
                    "name": "Idempotency-Key", "in": "header",
                    "description": "The same key with the same document answers the same id, and makes no second task, for as long as the server remembers keys: a day, unless its operator chose otherwise.",
                    "schema": { "type": "string", "minLength": 1, "maxLength": 255 }
                }],
                "requestBody": { "required": true, "content": content(&reference("Task")) },
                "responses": responses("The id of the new task.", &reference("CreateReply"), &[
                    ("400", "The document is not JSON or breaks rules; every breach is listed."),
                    ("409", "The Idempotency-Key was used for another document."),
                    ("413", "The document is too large.")
                ])
            }
        },
        "/tasks/{id}": { "get": {
            "operationId": "GetTask", "tags": ["tasks"],
            "summary": "One task",
            "parameters": [id, view],
            "responses": responses("The task.", &reference("TaskReply"), &[no_task])
        }},
        "/tasks/{id}:output": { "get": {
            "operationId": "TaskOutput", "tags": ["tasks"],
            "summary": "What an executor prints, while it does",
            "description": "An extension of this server: both streams of the command as plain text, from its beginning until it ends. Waits for the beginning. Where much is printed, parts may be missing; of a task that has ended it is what its log has.",
            "parameters": [id, parameter("executor", "Which one, counted from 0.", &json!({ "type": "integer", "minimum": 0, "default": 0 }))],
            "responses": output
        }},
        "/tasks/{id}:cancel": { "post": {
            "operationId": "CancelTask", "tags": ["tasks"],
            "summary": "Cancel a task",
            "description": "Answers at once; the task is CANCELING until nothing of it runs. A task that has ended stays as it is.",
            "parameters": [id],
            "responses": responses("Accepted.", &reference("CancelReply"), &[no_task])
        }}
    })
}

fn schemas() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .for_serialize()
        .into_generator();
    generator.subschema_for::<Task>();
    generator.subschema_for::<TaskReply>();
    generator.subschema_for::<ListReply>();
    generator.subschema_for::<CreateReply>();
    generator.subschema_for::<CancelReply>();
    generator.subschema_for::<ServiceInfo>();
    generator.subschema_for::<LegacyServiceInfo>();
    generator.subschema_for::<ErrorBody<'_>>();
    let mut schemas = generator.take_definitions(false);
    for schema in schemas.values_mut() {
        forbid_null(schema);
    }
    // What is filled in at create need not be sent.
    for name in ["Input", "Output"] {
        if let Some(required) = schemas
            .get_mut(name)
            .and_then(|schema| schema["required"].as_array_mut())
        {
            required.retain(|field| field != "type");
        }
    }
    Value::Object(schemas)
}

/// Optional members are absent here, never null.
fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(options)) = object.get_mut("anyOf") {
                options.retain(|option| *option != json!({ "type": "null" }));
                if let [only] = options.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    if let Value::Object(only) = only {
                        object.extend(only);
                    }
                }
            }
            object.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        _ => {}
    }
}
