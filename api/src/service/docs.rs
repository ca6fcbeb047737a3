//! The API for people: Swagger UI over our own OpenAPI document.
//!
//! All files are in this program; the page may load nothing from elsewhere.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::LazyLock;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

use super::App;
use super::error::ApiError;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>tesk: GA4GH Task Execution Service</title>
  <link rel="stylesheet" href="swagger-ui.css">
  <link rel="icon" type="image/png" href="favicon-32x32.png">
</head>
<body>
  <div id="api"></div>
  <script src="swagger-ui-bundle.js"></script>
  <script src="start.js"></script>
</body>
</html>
"#;

const START: &str = r##"SwaggerUIBundle({
  url: "../ga4gh/tes/v1/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
});
"##;

/// Those of Swagger UI's files that the page needs, unpacked once.
static FILES: LazyLock<HashMap<&'static str, Bytes>> = LazyLock::new(|| {
    unpack(&[
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "favicon-32x32.png",
    ])
    .unwrap_or_default()
});

fn unpack(names: &[&'static str]) -> zip::result::ZipResult<HashMap<&'static str, Bytes>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    let mut files = HashMap::new();
    for index in 0..archive.len() {
        let mut file = archive.by_index(index)?;
        let path = file.name()?.into_owned();
        let wanted = names.iter().find(|name| {
            let folder = path.strip_suffix(*name);
            // `<archive>/dist/`: other folders hold files of the same names.
            folder.is_some_and(|folder| {
                folder.ends_with("/dist/") && folder.matches('/').count() == 2
            })
        });
        if let Some(name) = wanted {
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            files.insert(*name, content.into());
        }
    }
    Ok(files)
}

/// From the root (of the server, or of the context path) to the page.
pub(super) async fn redirect(State(app): State<App>, uri: Uri) -> Response {
    let context = &app.context_path;
    let context = if !context.is_empty() && uri.path().starts_with(context.as_str()) {
        context
    } else {
        ""
    };
    let target = format!("{context}/docs/");
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response()
}

/// The page.
pub(super) async fn page() -> Response {
    file(
        "text/html; charset=utf-8",
        Bytes::from_static(PAGE.as_bytes()),
    )
}

/// A file of the page.
pub(super) async fn asset(path: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Ok(Path(name)) = path else {
        return Err(ApiError::no_such_path());
    };
    if name == "start.js" {
        let start = Bytes::from_static(START.as_bytes());
        return Ok(file("text/javascript; charset=utf-8", start));
    }
    let content = FILES
        .get(name.as_str())
        .ok_or_else(ApiError::no_such_path)?;
    let kind = match name.rsplit('.').next() {
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        _ => "image/png",
    };
    Ok(file(kind, content.clone()))
}

fn file(kind: &'static str, content: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "max-age=3600"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_in_the_archive() {
        for (attribute, _) in PAGE.match_indices("=\"") {
            let value = PAGE[attribute + 2..].split('"').next().unwrap();
            if value.contains('.') && value != "start.js" {
                assert!(FILES.get(value).is_some_and(|f| f.len() > 500), "{value}");
            }
        }
        assert_eq!(FILES.len(), 3);
    }
}
