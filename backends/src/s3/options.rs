//! The keys of an `s3` entry.

use std::path::PathBuf;

use serde::Deserialize;

/// The keys of a `[[storage]]` entry with `type = "s3"`.
///
/// # Where
///
/// Without `endpoint` it is AWS. `endpoint` and `region` are taken from here; else from the
/// environment (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`; `AWS_REGION`, `AWS_DEFAULT_REGION`);
/// else from `endpoint_url` and `region` of the profile in the AWS `config` file.
///
/// # Who
///
/// One of these, and they exclude each other:
/// - `anonymous = true`: requests are not signed, for public buckets.
/// - `access_key_id_*` and `secret_access_key_*`: a fixed key.
/// - `web_identity_token_file` and `role_arn`: a token that is exchanged for a role.
/// - `profile`, `config_file` or `credentials_file`: the AWS files.
/// - none of them: `AWS_ACCESS_KEY_ID` and so on from the environment, the default AWS files, the
///   web identity that the environment names (EKS), the role of the container (ECS), and the role
///   of the instance (EC2); the first that there is.
///
/// `role_arn` without a token is a role that whoever it is then assumes.
///
/// # Networks
///
/// They are as with `http`: buckets are names of hosts where they are not in the path. An
/// `endpoint` that is written as an address is the operator's own choice, and not checked; nor are
/// the servers that credentials come from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The server, such as `https://minio.example.org:9000`. Default: AWS in `region`.
    pub endpoint: Option<String>,
    /// The region. Default `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is the first component of the path (`https://host/bucket/key`) rather
    /// than a part of the host's name (`https://bucket.host/key`). Default: true with an
    /// `endpoint`, false for AWS. Buckets with a dot in their name always go into the path.
    pub path_style: Option<bool>,
    /// Use the old `ListObjects` request for servers that do not know version 2 of it. Default
    /// false.
    pub list_v1: bool,

    /// Do not sign requests. Default false.
    pub anonymous: bool,
    /// A file that holds the access key id.
    pub access_key_id_file: Option<PathBuf>,
    /// An environment variable that holds the access key id.
    pub access_key_id_env: Option<String>,
    /// A file that holds the secret access key.
    pub secret_access_key_file: Option<PathBuf>,
    /// An environment variable that holds the secret access key.
    pub secret_access_key_env: Option<String>,
    /// A file that holds the session token of a temporary key.
    pub session_token_file: Option<PathBuf>,
    /// An environment variable that holds the session token of a temporary key.
    pub session_token_env: Option<String>,
    /// The profile in the AWS files. Default: `AWS_PROFILE`, or `default`.
    pub profile: Option<String>,
    /// The AWS `config` file. Default: `AWS_CONFIG_FILE`, or `~/.aws/config`.
    pub config_file: Option<PathBuf>,
    /// The AWS `credentials` file. Default: `AWS_SHARED_CREDENTIALS_FILE`, or
    /// `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// The role to assume.
    pub role_arn: Option<String>,
    /// The external id that the role asks for.
    pub role_external_id: Option<String>,
    /// The name of the session in the role. Default `tesk`.
    pub role_session_name: Option<String>,
    /// A file with a token that is exchanged for `role_arn`.
    pub web_identity_token_file: Option<PathBuf>,
    /// Whether to ask the metadata services of the machine (EC2, ECS) for credentials. Default:
    /// true for AWS, false with an `endpoint`.
    pub instance_role: Option<bool>,

    /// The proxy for all requests but those to metadata services, such as `http://proxy:3128`, or
    /// `environment` for what `HTTPS_PROXY` and the like say. Default: none, also when those are
    /// set.
    pub proxy: Option<String>,
    /// A file of PEM certificates that are trusted besides those of the system.
    pub ca_file: Option<PathBuf>,
    /// Seconds to wait for a connection. Default 10.
    pub connect_timeout_secs: Option<u64>,

    /// Whether loopback and private networks are reached. Default true.
    pub allow_private: Option<bool>,
    /// Networks that are not reached, such as `10.1.0.0/16`.
    pub deny_networks: Vec<String>,
    /// Networks that are reached whatever else forbids them.
    pub allow_networks: Vec<String>,
    /// Hosts that are not reached, such as `s3.example.org` or `*.example.org` for all below it.
    pub deny_hosts: Vec<String>,
    /// Where there are any, no other hosts are reached.
    pub allow_hosts: Vec<String>,

    /// Refuse writing. Default false.
    pub read_only: bool,
    /// A checksum that the server compares what it receives with; buckets with object lock need
    /// one. Default: none, and what TLS checks; without TLS the entity tags of parts are compared.
    ///
    /// Each part is read into memory first, because its checksum is sent before it.
    pub checksum: Option<Checksum>,
    /// Who encrypts objects that are written. Default: what the bucket says.
    pub encryption: Option<Encryption>,
    /// The key of `encryption = "aws:kms"`. Default: the account's own.
    pub kms_key_id: Option<String>,
    /// A file that holds the base64 of the 32 bytes of a key of one's own (SSE-C), for reading
    /// and writing.
    pub customer_key_file: Option<PathBuf>,
    /// An environment variable that holds such a key.
    pub customer_key_env: Option<String>,
    /// The storage class of objects that are written, such as `STANDARD_IA`.
    pub storage_class: Option<String>,
    /// Agree to pay for requests to buckets whose owner does not. Default false.
    pub request_payer: bool,
}

/// A checksum that goes with each upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// `Content-MD5`: known to every server.
    Md5,
    /// `x-amz-checksum-sha256`: kept with the object.
    Sha256,
}

/// Encryption by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Encryption {
    /// With keys of the service (SSE-S3).
    #[serde(rename = "AES256")]
    Aes256,
    /// With keys of the key management service (SSE-KMS).
    #[serde(rename = "aws:kms")]
    Kms,
}

impl Encryption {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::Kms => "aws:kms",
        }
    }
}
