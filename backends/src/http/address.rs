//! Which addresses are reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tesk_core::storage::ConfigError;

use super::Options;

/// Never reached: link-local, metadata services (AWS, Alibaba, Oracle, Google), unspecified,
/// multicast and broadcast.
const NEVER: [&str; 11] = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "fe80::/10",
    "fd00:ec2::254/128",
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

/// The networks that an entry reaches.
#[derive(Clone, Debug)]
pub(super) struct Networks {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// An address that is not reached.
#[derive(Debug, thiserror::Error)]
#[error("the address {address} of this server is not reached from here")]
pub(super) struct Refused {
    address: IpAddr,
}

impl Networks {
    pub(super) fn new(options: &Options) -> Result<Self, ConfigError> {
        let mut deny = networks("deny_networks", &options.deny_networks)?;
        deny.extend(networks("", &NEVER)?);
        if options.allow_private == Some(false) {
            deny.extend(networks("", &PRIVATE)?);
        }
        Ok(Self {
            allow: networks("allow_networks", &options.allow_networks)?,
            deny,
        })
    }

    pub(super) fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let contain = |networks: &[IpNet], address: IpAddr| {
            networks.iter().any(|network| network.contains(&address))
        };
        // One that only wraps another leads to that.
        let inner = unwrapped(address);
        if contain(&self.allow, address) || contain(&self.allow, inner) {
            return Ok(());
        }
        if contain(&self.deny, address) || contain(&self.deny, inner) {
            return Err(Refused { address });
        }
        Ok(())
    }

    /// Checks the host of a URL where it is an address; a name is checked when it is resolved.
    pub(super) fn check_host(&self, url: &reqwest::Url) -> Result<(), Refused> {
        match url
            .host_str()
            .map(|host| host.trim_matches(['[', ']']).parse())
        {
            Some(Ok(address)) => self.check(address),
            _ => Ok(()),
        }
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
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => last.into(),
        [0x2002, a, b, ..] => Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)).into(),
        _ => address,
    }
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

/// Resolves names to addresses that are reached: what is connected to is what was checked.
pub(super) struct CheckedResolver {
    pub(super) networks: Arc<Networks>,
    /// The operator's proxy may lie anywhere.
    pub(super) proxy: Option<String>,
}

impl fmt::Debug for CheckedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckedResolver")
    }
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = self.networks.clone();
        let is_proxy = self.proxy.as_deref() == Some(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut refused = None;
            let mut reached = Vec::new();
            for address in found {
                match networks.check(address.ip()) {
                    Err(why) if !is_proxy => refused = Some(why),
                    _ => reached.push(address),
                }
            }
            match refused {
                Some(why) if reached.is_empty() => Err(why.into()),
                _ => Ok(Box::new(reached.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(options: &Options, address: &str) -> bool {
        let networks = Networks::new(options).unwrap();
        networks.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn metadata_services_are_not_reached_in_any_spelling() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
        ] {
            assert!(!reached(&Options::default(), address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
            "192.168.1.1",
            "8.8.8.8",
            "fd00::1",
        ] {
            assert!(reached(&Options::default(), address), "{address}");
        }
    }

    #[test]
    fn an_operator_can_open_and_close_networks() {
        let options = Options {
            allow_private: Some(false),
            deny_networks: vec!["8.8.0.0/16".into()],
            allow_networks: vec!["10.1.0.0/16".into(), "169.254.1.1".into()],
            ..Options::default()
        };
        for address in ["10.1.2.3", "169.254.1.1", "9.9.9.9"] {
            assert!(reached(&options, address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "::1", "8.8.8.8", "169.254.1.2"] {
            assert!(!reached(&options, address), "{address}");
        }
        let options = Options {
            deny_networks: vec!["10.0.0.0/64".into()],
            ..Options::default()
        };
        let error = Networks::new(&options).unwrap_err().to_string();
        assert!(
            error.starts_with("deny_networks: `10.0.0.0/64` is no network"),
            "{error}"
        );
    }
}
