//! Which addresses may be called: names are resolved here and checked, and who then connects to one of the
//! addresses that were found cannot be led elsewhere by a name that changes its meaning in between. For an HTTP
//! client, [`Addresses`] is the resolver that it needs for that.
//!
//! What is public the standard library knows (`IpAddr::is_global`), but not in stable Rust; this follows the
//! same registries (IANA, special-purpose addresses), and errs towards private.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Networks of IPv4 that are not everybody's: first address and bits.
const NOT_PUBLIC_V4: [(Ipv4Addr, u32); 14] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Link-local: where clouds keep their metadata and credentials.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved, broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Networks of IPv6's public eighth, `2000::/3`, that are not everybody's either.
const NOT_PUBLIC_V6: [(Ipv6Addr, u32); 4] = [
    // Protocol assignments, Teredo among them.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    // 6to4 leads to whatever IPv4 address is in it.
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];
const PUBLIC_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// IPv6 addresses that stand for the IPv4 address at their end (NAT64).
const NAT64: (Ipv6Addr, u32) = (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// An address that is not the public internet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is a private address")]
pub struct PrivateAddress(pub IpAddr);

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It has no address, or cannot be asked about now.
    #[error(transparent)]
    Lookup(#[from] io::Error),
    /// It has private addresses alone.
    #[error(transparent)]
    Private(#[from] PrivateAddress),
}

/// The private address that a call was refused for, if that is why it failed: HTTP clients wrap what their
/// resolver says.
#[must_use]
pub fn refused_address(error: &(dyn Error + 'static)) -> Option<PrivateAddress> {
    causes(error)
        .filter_map(|error| error.downcast_ref::<ResolveError>())
        .find_map(|error| match error {
            ResolveError::Private(address) => Some(*address),
            ResolveError::Lookup(_) => None,
        })
}

/// An error with its causes, which is where an HTTP client says what happened.
#[must_use]
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let words: Vec<String> = causes(error).map(ToString::to_string).collect();
    words.join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Which addresses may be called.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    allow_private: bool,
}

impl Addresses {
    /// The public ones, and the private ones if `allow_private`.
    #[must_use]
    pub const fn allowing_private(allow_private: bool) -> Self {
        Self { allow_private }
    }

    /// Whether this address may be called.
    pub fn check(self, address: IpAddr) -> Result<(), PrivateAddress> {
        if self.allow_private || is_public(address) {
            Ok(())
        } else {
            Err(PrivateAddress(address))
        }
    }

    /// Whether a URL's host may be called, if it is an address: HTTP clients do not ask their resolver about
    /// those. A name is checked by [`Self::resolve`].
    pub fn check_literal(self, url: &Url) -> Result<(), PrivateAddress> {
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into()),
            Some(Host::Ipv6(address)) => self.check(address.into()),
            Some(Host::Domain(_)) | None => Ok(()),
        }
    }

    /// The addresses of a name that may be called, with port 0.
    pub async fn resolve(self, name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in tokio::net::lookup_host((name, 0)).await? {
            match self.check(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(private) => refused = Some(private),
            }
        }
        match refused {
            Some(private) if allowed.is_empty() => Err(private.into()),
            _ => Ok(allowed),
        }
    }
}

/// Names are what they lead to, and may be called.
impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = *self;
        Box::pin(async move {
            let allowed = addresses.resolve(name.as_str()).await?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public internet.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) if within_v6(v6, NAT64) => {
            let [.., a, b, c, d] = v6.octets();
            is_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V6(v6) => {
            within_v6(v6, PUBLIC_V6) && !NOT_PUBLIC_V6.iter().any(|network| within_v6(v6, *network))
        }
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let within = |(network, bits): &(Ipv4Addr, u32)| {
        (address.to_bits() ^ network.to_bits()) >> (u32::BITS - bits) == 0
    };
    !NOT_PUBLIC_V4.iter().any(within)
}

fn within_v6(address: Ipv6Addr, (network, bits): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (u128::BITS - bits) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_dress() {
        let private = [
            "0.0.0.0",
            "10.255.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "100::1",
            "fec0::1",
            "4000::1",
            "::127.0.0.1",
        ];
        for address in private {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        for address in public {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_literal_address_is_checked_in_every_spelling() {
        let check = |url: &str, allow_private| {
            let url = Url::parse(url).unwrap();
            Addresses::allowing_private(allow_private).check_literal(&url)
        };
        for url in [
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1:80/",
            "http://[::ffff:10.0.0.1]/",
            "http://169.254.169.254/latest",
        ] {
            assert!(check(url, false).is_err(), "{url}");
            assert_eq!(check(url, true), Ok(()), "{url}");
        }
        assert_eq!(
            check("http://localhost/", false),
            Ok(()),
            "names come later"
        );
        assert_eq!(check("https://8.8.8.8/", false), Ok(()));
    }

    #[tokio::test]
    async fn a_name_with_private_addresses_alone_is_refused() {
        let public_only = Addresses::allowing_private(false);
        let error = public_only.resolve("localhost").await.unwrap_err();
        assert!(matches!(error, ResolveError::Private(_)), "{error}");
        assert!(refused_address(&error).is_some());
        let all = Addresses::allowing_private(true).resolve("localhost").await;
        assert!(
            all.unwrap()
                .iter()
                .all(|address| address.ip().is_loopback())
        );
    }
}
