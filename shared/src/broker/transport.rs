//! The way to the broker: TCP, or TLS to a broker that was verified. Which one, the URL says; the one is never tried
//! in place of the other.

use std::io;

use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector};
use lapin::{Connection, ConnectionProperties};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{BrokerError, Greeting, greeting};
use crate::config::BrokerConfig;

/// Connects and logs in. Password and certificates are read first: they are small, and this is seldom.
pub(super) async fn connect(
    config: &BrokerConfig,
    properties: ConnectionProperties,
) -> Result<Connection, BrokerError> {
    let (uri, tls) = (config.client_uri()?, config.client_tls()?);
    let tls = tls.map(RustlsConnector::from);
    let runtime = lapin::runtime::default_runtime().expect("called inside a tokio runtime");
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let Some(tls) = &tls else {
                return Ok(uri.connect_async(&runtime).await?);
            };
            let (host, port) = (uri.authority.host, uri.authority.port);
            let addresses = runtime.to_socket_addrs((host.clone(), port));
            let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
            Ok(stream.into_rustls(tls, &host).await?)
        },
        properties,
    );
    connecting
        .await
        .map_err(|error| BrokerError::connecting(&config.address(), &error))
}

/// Reads how the broker introduces itself, from a connection of its own.
pub(super) async fn greeting(config: &BrokerConfig) -> Result<Option<Greeting>, BrokerError> {
    let (uri, tls) = (config.client_uri()?, config.client_tls()?);
    let reading = async {
        let host = uri.authority.host;
        let stream = TcpStream::connect((host.as_str(), uri.authority.port)).await?;
        let Some(tls) = tls else {
            return greeting::read(stream).await;
        };
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        greeting::read(TlsConnector::from(tls).connect(name, stream).await?).await
    };
    reading
        .await
        .map_err(|error| BrokerError::reaching(&config.address(), &error))
}
