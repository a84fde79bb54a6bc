//! `coordinator health` and `worker health`: asks the process beside it whether it is ready. For container engines,
//! whose images have no other program that could.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::tls;

/// Longest wait for connecting, and for the answer.
const PATIENCE: Duration = Duration::from_secs(3);
const REQUEST: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Who was asked is not ready.
#[derive(Debug, thiserror::Error)]
#[error("what listens on {address} is not ready: {problem}")]
pub struct NotReady {
    /// Where it was asked.
    pub address: SocketAddr,
    /// Its status, or why there is none.
    pub problem: String,
}

/// Whether the process that listens there, on this machine, is ready. With `cert_file` it is asked over TLS, and that
/// certificate alone is believed.
pub fn ready(listen: SocketAddr, cert_file: Option<&Path>) -> Result<(), NotReady> {
    let address = reachable(listen);
    let not_ready = |problem: String| NotReady { address, problem };
    let tls = cert_file.map(tls::only).transpose();
    let tls = tls.map_err(|problem| not_ready(problem.to_string()))?;
    match status_line(address, tls) {
        Ok(line) if line.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(line) => Err(not_ready(line)),
        Err(error) => Err(not_ready(error.to_string())),
    }
}

fn status_line(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(tls) = tls else {
        return ask(stream);
    };
    let connection = ClientConnection::new(tls, address.ip().into()).map_err(io::Error::other)?;
    ask(StreamOwned::new(connection, stream))
}

fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// Who listens on all addresses can be reached at loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
