//! Which servers are reached from here: shared by all backends that connect to servers.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use tesk_core::storage::ConfigError;

/// Never reached: link-local, metadata services (AWS, Alibaba, Oracle, Google), unspecified,
/// multicast and broadcast.
const NEVER: [&str; 14] = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "fe80::/10",
    "fd00:ec2::254/128",
    "fd00:ec2::23/128",
    "fd00:c1::a9fe:a9fe/128",
    "fd20:ce::254/128",
    "ff00::/8",
];
/// Loopback and private networks.
const PRIVATE: [&str; 7] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "::1/128",
    "fc00::/7",
];

/// The keys of an entry that limit what it reaches.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits<'a> {
    /// Default true.
    pub(crate) allow_private: Option<bool>,
    pub(crate) deny_networks: &'a [String],
    pub(crate) allow_networks: &'a [String],
    pub(crate) deny_hosts: &'a [String],
    pub(crate) allow_hosts: &'a [String],
}

/// The [`Limits`] that the options of an entry give. Each backend has the keys among its own:
/// serde suggests no key for an unknown one where structures are flattened.
macro_rules! limits {
    ($options:expr) => {
        $crate::network::Limits {
            allow_private: $options.allow_private,
            deny_networks: &$options.deny_networks,
            allow_networks: &$options.allow_networks,
            deny_hosts: &$options.deny_hosts,
            allow_hosts: &$options.allow_hosts,
        }
    };
}
pub(crate) use limits;

/// The networks and hosts that an entry reaches.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    /// Where there are any, no others are reached.
    allow_hosts: Vec<Host>,
    deny_hosts: Vec<Host>,
}

/// A host by its name, or every host below one.
#[derive(Clone, Debug)]
enum Host {
    Exactly(String),
    /// With a dot before it.
    Below(String),
}

/// A server that is not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the address {0} of this server is not reached from here")]
    Address(IpAddr),
    #[error("the host {0} is not reached from here")]
    Host(String),
}

impl Networks {
    pub(crate) fn new(limits: Limits<'_>) -> Result<Self, ConfigError> {
        let mut deny = networks("deny_networks", limits.deny_networks)?;
        deny.extend(networks("", &NEVER)?);
        if limits.allow_private == Some(false) {
            deny.extend(networks("", &PRIVATE)?);
        }
        Ok(Self {
            allow: networks("allow_networks", limits.allow_networks)?,
            deny,
            allow_hosts: hosts("allow_hosts", limits.allow_hosts)?,
            deny_hosts: hosts("deny_hosts", limits.deny_hosts)?,
        })
    }

    /// Checks the name of a host, or an address where one is written in its place, before it is
    /// looked up.
    pub(crate) fn check_host(&self, host: &str) -> Result<(), Refused> {
        let host = host.trim_matches(['[', ']']);
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let names = |hosts: &[Host]| {
            hosts.iter().any(|pattern| match pattern {
                Host::Exactly(known) => *known == name,
                Host::Below(parent) => name.ends_with(parent),
            })
        };
        if names(&self.deny_hosts) || !(self.allow_hosts.is_empty() || names(&self.allow_hosts)) {
            return Err(Refused::Host(name));
        }
        match host.parse() {
            Ok(address) => self.check(address),
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let contain = |networks: &[IpNet], address: IpAddr| {
            networks.iter().any(|network| network.contains(&address))
        };
        // One that only wraps another leads to that.
        let inner = unwrapped(address);
        if contain(&self.allow, address) || contain(&self.allow, inner) {
            return Ok(());
        }
        if contain(&self.deny, address) || contain(&self.deny, inner) {
            return Err(Refused::Address(address));
        }
        Ok(())
    }

    /// Checks an `address` that the server at `peer` names in place of its own: a server out in
    /// the world never leads into a private network.
    #[cfg(feature = "ftp")]
    pub(crate) fn check_named_by(&self, peer: IpAddr, address: IpAddr) -> Result<(), Refused> {
        let (peer, inner) = (unwrapped(peer), unwrapped(address));
        if peer == inner {
            return Ok(());
        }
        let is_private = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
        };
        let is_loopback = inner.is_loopback() && !peer.is_loopback();
        if is_loopback || (is_private(inner) && !is_private(peer)) {
            return Err(Refused::Address(address));
        }
        self.check(address)
    }
}

/// The IPv4 address in an IPv6 one: mapped (RFC 4291), translated (RFC 6052) or 6to4 (RFC 3056).
fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let [.., a, b] = v6.segments();
    let last = Ipv4Addr::from((u32::from(a) << 16) | u32::from(b));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] if !v6.is_loopback() && !v6.is_unspecified() => {
            last.into()
        }
        // NAT64, well-known and local-use prefix (RFC 6052, RFC 8215), and SIIT (RFC 2765).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] | [0x64, 0xff9b, 1, ..] => last.into(),
        [0, 0, 0, 0, 0xffff, 0, _, _] => last.into(),
        [0x2002, a, b, ..] => Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)).into(),
        _ => address,
    }
}

fn hosts(key: &str, texts: &[String]) -> Result<Vec<Host>, ConfigError> {
    let read = |text: &String| {
        let ordinary = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text.as_str(), false),
        };
        if name.is_empty() || name.ends_with('.') || !name.chars().all(ordinary) {
            let message = "is no host such as `ftp.example.org` or `*.example.org`";
            return Err(ConfigError(format!("{key}: `{text}` {message}")));
        }
        let name = name.to_ascii_lowercase();
        Ok(if below {
            Host::Below(format!(".{name}"))
        } else {
            Host::Exactly(name)
        })
    };
    texts.iter().map(read).collect()
}

fn networks<S: AsRef<str>>(key: &str, texts: &[S]) -> Result<Vec<IpNet>, ConfigError> {
    let parse = |text: &str| {
        let single = text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().or(single)
    };
    let texts = texts.iter().map(AsRef::as_ref);
    texts
        .map(|text| {
            parse(text).map_err(|_| {
                let message = "is no network such as `10.0.0.0/8` or `fd00::/8`";
                ConfigError(format!("{key}: `{text}` {message}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(networks: &Networks, address: &str) -> bool {
        networks.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn metadata_services_are_not_reached_in_any_spelling() {
        let networks = Networks::new(Limits::default()).unwrap();
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "::ffff:0:169.254.169.254",
            "168.63.129.16",
            "fd00:ec2::23",
            "fd00:c1::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert!(!reached(&networks, address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
            "192.168.1.1",
            "8.8.8.8",
            "fd00::1",
        ] {
            assert!(reached(&networks, address), "{address}");
        }
    }

    #[test]
    fn an_operator_can_open_and_close_networks() {
        let deny = ["8.8.0.0/16".into()];
        let allow = ["10.1.0.0/16".into(), "169.254.1.1".into()];
        let networks = Networks::new(Limits {
            allow_private: Some(false),
            deny_networks: &deny,
            allow_networks: &allow,
            ..Limits::default()
        })
        .unwrap();
        for address in ["10.1.2.3", "169.254.1.1", "9.9.9.9"] {
            assert!(reached(&networks, address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "::1", "8.8.8.8", "169.254.1.2"] {
            assert!(!reached(&networks, address), "{address}");
        }
        let error = Networks::new(Limits {
            deny_networks: &["10.0.0.0/64".into()],
            ..Limits::default()
        })
        .unwrap_err()
        .to_string();
        assert!(
            error.starts_with("deny_networks: `10.0.0.0/64` is no network"),
            "{error}"
        );
    }

    #[test]
    fn hosts_are_told_apart_by_their_names() {
        let limited = |deny: &[&str], allow: &[&str]| {
            let owned = |hosts: &[&str]| hosts.iter().map(|&h| h.to_owned()).collect::<Vec<_>>();
            Networks::new(Limits {
                deny_hosts: &owned(deny),
                allow_hosts: &owned(allow),
                ..Limits::default()
            })
        };
        let networks = limited(&["bad.example.org"], &["*.Example.org", "::1", "h"]).unwrap();
        for host in ["a.example.org", "a.b.EXAMPLE.org.", "h", "[::1]"] {
            assert!(networks.check_host(host).is_ok(), "{host}");
        }
        for host in [
            "example.org",
            "notexample.org",
            "bad.example.org",
            "BAD.example.org.",
            "127.0.0.1",
            "example.org.evil",
            "",
        ] {
            assert!(networks.check_host(host).is_err(), "{host}");
        }
        for wrong in ["", "*", "*.", "a.*", "https://a", "a/b"] {
            let error = limited(&[wrong], &[]).unwrap_err().to_string();
            assert!(error.starts_with("deny_hosts: "), "{error}");
        }
    }
}
