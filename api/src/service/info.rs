//! The description of the service, in the form of GA4GH service-info 1.0 and TES 1.1.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::Serialize;
use tesk_core::tes::Rules;

use super::App;
use crate::config;

/// The reply of GetServiceInfo.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    /// In reverse-domain form.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// Which API this is.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// What the service is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Who runs it.
    pub organization: Organization,
    /// Where to ask for help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_url: Option<String>,
    /// Where it is described.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
    /// When the service was first offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When it last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    /// `prod`, `test`, `dev`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The version of this server.
    pub version: String,
    /// URL prefixes that inputs and outputs may use.
    pub storage: Vec<String>,
    /// The keys that `resources.backend_parameters` may hold.
    #[serde(rename = "tesResources_backend_parameters")]
    pub backend_parameters: Vec<String>,
}

/// Which API a service offers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServiceType {
    /// `org.ga4gh`
    pub group: &'static str,
    /// `tes`
    pub artifact: &'static str,
    /// The version of the specification.
    pub version: &'static str,
}

/// Who runs a service.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Organization {
    /// Their name.
    pub name: String,
    /// Their page.
    pub url: String,
}

/// The reply that clients of TES 0.4 ask for below `/tasks/service-info`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LegacyServiceInfo {
    /// A name for people.
    pub name: String,
    /// What the service is for; may be empty.
    pub doc: String,
    /// URL prefixes that inputs and outputs may use.
    pub storage: Vec<String>,
}

impl ServiceInfo {
    pub(crate) fn new(config: &config::ServiceInfo, rules: &Rules) -> Self {
        let config = config.clone();
        Self {
            id: config.id,
            name: config.name,
            kind: ServiceType {
                group: "org.ga4gh",
                artifact: "tes",
                version: "1.1.0",
            },
            description: config.description,
            organization: Organization {
                name: config.organization_name,
                url: config.organization_url,
            },
            contact_url: config.contact_url,
            documentation_url: config.documentation_url,
            created_at: config.created_at,
            updated_at: config.updated_at,
            environment: config.environment,
            version: env!("CARGO_PKG_VERSION").into(),
            storage: rules.prefixes.iter().map(|rule| rule.prefix.clone()).collect(),
            backend_parameters: rules.backend_parameters.keys().cloned().collect(),
        }
    }

    pub(crate) fn legacy(&self) -> LegacyServiceInfo {
        LegacyServiceInfo {
            name: self.name.clone(),
            doc: self.description.clone().unwrap_or_default(),
            storage: self.storage.clone(),
        }
    }
}

pub(super) async fn service_info(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        app.service_info.clone(),
    )
}

pub(super) async fn legacy(State(app): State<App>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        app.legacy_service_info.clone(),
    )
}
