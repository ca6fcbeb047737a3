//! Where connections go: to addresses that were checked, and to no other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tesk_core::storage::{Error, ErrorKind, Result, StorageUrl};
use tokio::net::TcpStream;

use super::options::Tls;
use crate::network::Networks;

/// After this long without a command, the control connection says that it is alive: a file may
/// take hours, and what stands between forgets silent connections.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// Host and port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    /// In lower case, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Server {
    /// The server that `url` names.
    pub(super) fn of(url: &StorageUrl, tls: Tls) -> Result<Self> {
        let text = url.host();
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').unwrap_or((rest, "")),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port {
            "" | ":" if tls == Tls::Implicit => Some(990),
            "" | ":" => Some(21),
            port => port.strip_prefix(':').and_then(|port| port.parse().ok()),
        };
        let is_host = !host.is_empty()
            && host
                .chars()
                .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
        match port {
            Some(port) if is_host => Ok(Self {
                host: host.to_ascii_lowercase(),
                port,
            }),
            _ => {
                let message = format!("`{}` is no host", text.escape_debug());
                Err(Error::new(ErrorKind::Invalid, url, message))
            }
        }
    }

    /// The addresses of the server that are reached, at least one.
    pub(super) async fn resolve(&self, networks: &Networks) -> io::Result<Vec<SocketAddr>> {
        let denied = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
        networks.check_host(&self.host).map_err(denied)?;
        let mut refused = None;
        let mut reached = Vec::new();
        for address in tokio::net::lookup_host((self.host.as_str(), self.port)).await? {
            match networks.check(address.ip()) {
                Ok(()) => reached.push(address),
                Err(why) => refused = Some(why),
            }
        }
        match refused {
            _ if !reached.is_empty() => Ok(reached),
            Some(why) => Err(denied(why)),
            None => {
                let message = "the server's name has no address";
                Err(io::Error::new(io::ErrorKind::NotFound, message))
            }
        }
    }
}

/// Sets what a control connection needs; where that fails, it works without.
pub(super) fn tune(control: &TcpStream) {
    let tuned = control
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_socket_keepalive(control, true)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(control, KEEP_ALIVE)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepintvl(control, KEEP_ALIVE / 2)?));
    if let Err(error) = tuned {
        tracing::debug!(%error, "a control connection is without keep-alive");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_told_apart() {
        let server = |url: &str, tls| {
            let server = Server::of(&url.parse().unwrap(), tls).ok()?;
            Some(format!("{} {}", server.host, server.port))
        };
        let none = |url| server(url, Tls::None);
        assert_eq!(none("ftp://Example.org/x").unwrap(), "example.org 21");
        assert_eq!(none("ftp://me:p@h:2121/x").unwrap(), "h 2121");
        assert_eq!(none("ftp://[::1]:2121/x").unwrap(), "::1 2121");
        assert_eq!(none("ftp://[::1]/x").unwrap(), "::1 21");
        assert_eq!(server("ftps://h/x", Tls::Implicit).unwrap(), "h 990");
        assert_eq!(server("ftps://h/x", Tls::Explicit).unwrap(), "h 21");
        for url in [
            "ftp:///x",
            "ftp://h:x/",
            "ftp://h:99999/",
            "ftp://a b/",
            "ftp://h:1:2/",
        ] {
            assert_eq!(none(url), None, "{url}");
        }
    }
}
