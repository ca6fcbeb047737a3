//! The description of the service, in the form of GA4GH service-info 1.0 and TES 1.1.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::Serialize;
use tesk_core::tes::Rules;
use tesk_core::tes::reply::{Organization, ServiceInfo, ServiceType};

use super::App;
use crate::config;

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

/// The description that `config` gives, with the storages and parameters of `rules`.
pub(super) fn describe(config: &config::ServiceInfo, rules: &Rules) -> ServiceInfo {
    let config = config.clone();
    ServiceInfo {
        id: config.id,
        name: config.name,
        kind: ServiceType::tes(),
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
        storage: rules
            .prefixes
            .iter()
            .map(|rule| rule.prefix.clone())
            .collect(),
        backend_parameters: rules.backend_parameters.keys().cloned().collect(),
    }
}

impl From<&ServiceInfo> for LegacyServiceInfo {
    fn from(info: &ServiceInfo) -> Self {
        Self {
            name: info.name.clone(),
            doc: info.description.clone().unwrap_or_default(),
            storage: info.storage.clone(),
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
