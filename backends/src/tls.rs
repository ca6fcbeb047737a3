//! Whom backends, and clients that use this, trust.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tesk_core::storage::ConfigError;

/// Trusts the system's certificates, or Mozilla's where it has none, and those of `ca_file`. So
/// it works in an image that holds nothing but a program.
pub fn client_config(
    ca_file: Option<&Path>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<rustls::ClientConfig, ConfigError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        let refused = |why: &dyn fmt::Display| {
            ConfigError(format!("ca_file: cannot use `{}`: {why}", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| refused(&e))?;
        let mut count = 0;
        for certificate in certificates {
            let certificate = certificate.map_err(|e| refused(&e))?;
            roots.add(certificate).map_err(|e| refused(&e))?;
            count += 1;
        }
        if count == 0 {
            return Err(refused(&"it holds no certificate"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|e| ConfigError(format!("tls cannot be set up: {e}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
