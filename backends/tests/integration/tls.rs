use std::sync::Arc;

use tesk_core::storage::ErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::Bench;
use super::server::Server;

/// A server with a certificate that only its own file vouches for, which answers every request
/// with `reply`; its port and that certificate.
async fn serve(reply: String) -> (u16, String) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            // A client that does not trust the certificate ends it here.
            if let Ok(mut client) = acceptor.accept(client).await {
                let mut request = [0; 4096];
                let _ = client.read(&mut request).await;
                let _ = client.write_all(reply.as_bytes()).await;
                let _ = client.shutdown().await;
            }
        }
    });
    (port, key.cert.pem())
}

fn trusting(directory: &tempfile::TempDir, certificate: &str) -> Bench {
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, certificate).unwrap();
    Bench::with(&format!(
        "[[storage]]\ntype = 'http'\nprefix = ['https://', 'http://']\nca_file = '{}'",
        path.display()
    ))
}

#[tokio::test]
async fn a_certificate_is_trusted_if_its_file_is_given() {
    let reply = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nhere";
    let (port, certificate) = serve(reply.into()).await;
    let directory = tempfile::tempdir().unwrap();
    let from = format!("https://localhost:{port}/x");
    let fetched = trusting(&directory, &certificate).fetch(&from).await;
    assert_eq!(fetched.unwrap(), b"here");

    let error = Bench::new().fetch(&from).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the server's certificate is not trusted"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn credentials_keep_a_request_from_leaving_tls() {
    let plain = Server::start().await;
    plain.put("/x", "here");
    let reply = format!(
        "HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: {}\r\n\r\n",
        plain.url("/x")
    );
    let (port, certificate) = serve(reply).await;
    let directory = tempfile::tempdir().unwrap();
    let bench = trusting(&directory, &certificate);
    let from = format!("https://localhost:{port}/x");
    assert_eq!(bench.fetch(&from).await.unwrap(), b"here");
    let asked = plain.requests().len();
    let from = from.replace("://", "://me:s3cret@");
    let error = bench.fetch(&from).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(plain.requests().len(), asked);
}
