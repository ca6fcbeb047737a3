//! Which addresses are reached from here: shared by all backends that connect to where a task says.

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

/// The networks that an entry reaches.
#[derive(Clone, Debug)]
pub(crate) struct Networks {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

/// An address that is not reached.
#[derive(Debug, thiserror::Error)]
#[error("the address {address} of this server is not reached from here")]
pub(crate) struct Refused {
    address: IpAddr,
}

impl Networks {
    /// From the keys `allow_private` (default true), `deny_networks` and `allow_networks`.
    pub(crate) fn new(
        allow_private: Option<bool>,
        deny_networks: &[String],
        allow_networks: &[String],
    ) -> Result<Self, ConfigError> {
        let mut deny = networks("deny_networks", deny_networks)?;
        deny.extend(networks("", &NEVER)?);
        if allow_private == Some(false) {
            deny.extend(networks("", &PRIVATE)?);
        }
        Ok(Self {
            allow: networks("allow_networks", allow_networks)?,
            deny,
        })
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
            return Err(Refused { address });
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
            return Err(Refused { address });
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
        let networks = Networks::new(None, &[], &[]).unwrap();
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
        let networks = Networks::new(Some(false), &deny, &allow).unwrap();
        for address in ["10.1.2.3", "169.254.1.1", "9.9.9.9"] {
            assert!(reached(&networks, address), "{address}");
        }
        for address in ["10.2.0.1", "127.0.0.1", "::1", "8.8.8.8", "169.254.1.2"] {
            assert!(!reached(&networks, address), "{address}");
        }
        let error = Networks::new(None, &["10.0.0.0/64".into()], &[]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.starts_with("deny_networks: `10.0.0.0/64` is no network"),
            "{error}"
        );
    }
}
