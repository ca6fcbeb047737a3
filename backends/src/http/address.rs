//! Names resolved to addresses that are reached.

use std::fmt;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::network::{Networks, Refused};

/// Checks the host of a URL; the addresses of a name are checked when it is resolved.
pub(super) fn check_host(networks: &Networks, url: &reqwest::Url) -> Result<(), Refused> {
    networks.check_host(url.host_str().unwrap_or_default())
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
