//! How the broker introduces itself, before any login. lapin reads the same greeting and keeps it to itself.

use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::types::AMQPValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Product and version of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// `RabbitMQ`, most likely.
    pub product: String,
    /// Such as `4.2.10`.
    pub version: String,
}

/// "AMQP", then the protocol's version 0.9.1.
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// A greeting has about 500 bytes.
const MAX_GREETING_BYTES: usize = 64 * 1024;

/// Reads the greeting from a fresh connection, which is dropped after that; `None` when it makes no sense.
pub(super) async fn read(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<Option<Greeting>> {
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    // A frame: type, channel (2 bytes), size of what follows (4 bytes), that, and one byte to end it.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [_, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if size > MAX_GREETING_BYTES {
        return Ok(None);
    }
    let mut frame = vec![0; size];
    stream.read_exact(&mut frame).await?;
    Ok(decode(&frame))
}

fn decode(frame: &[u8]) -> Option<Greeting> {
    let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parse_class(frame) else {
        return None;
    };
    let text = |name: &str| match start.server_properties.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    };
    Some(Greeting {
        product: text("product")?,
        version: text("version")?,
    })
}
