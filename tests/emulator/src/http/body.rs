//! Bodies: whole ones, and those that a fault spoils on their way.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt as _};
use hyper::body::{Frame, SizeHint};

use super::wire::Cut;
use crate::api::SiteCall;
use crate::app::App;
use crate::fault::{Fault, Kind};

/// How long bytes get to leave before the connection breaks behind them.
const FLUSH_TIME: Duration = Duration::from_millis(20);
/// A dripping body comes in portions, so many a second.
const DRIPS_PER_S: u64 = 10;
/// How much more than the body a wrong `Content-Length` promises.
const PROMISED_TOO_MUCH: usize = 100;

/// Counts a request as under way until its answer is gone.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<App>);

impl UnderWay {
    pub(super) fn begin(app: &Arc<App>, is_h2: bool) -> Self {
        app.stats().request(is_h2);
        Self(Arc::clone(app))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.stats().request_ended();
    }
}

enum Content {
    Whole(Option<Bytes>),
    Parts(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

/// The body of an answer.
pub(crate) struct AnswerBody {
    content: Content,
    _under_way: (Option<UnderWay>, Option<SiteCall>),
}

impl AnswerBody {
    /// The body for `bytes`, and the `Content-Length` to announce.
    pub(super) fn new(
        bytes: Bytes,
        wire: Option<Fault>,
        cut: Cut,
        under_way: (Option<UnderWay>, Option<SiteCall>),
    ) -> (Self, usize) {
        let length = bytes.len();
        let whole = |bytes| Content::Whole(Some(bytes));
        let (content, announced) = match wire {
            None => (whole(bytes), length),
            Some(fault) => match fault.kind {
                Kind::TruncatedGzip | Kind::TruncatedJson => {
                    (whole(bytes.slice(..length / 2)), length / 2)
                }
                Kind::WrongContentLength => (
                    Content::Parts(ending_early(bytes)),
                    length + PROMISED_TOO_MUCH,
                ),
                Kind::ConnResetMidBody => (Content::Parts(breaking(&bytes, cut)), length),
                Kind::Stall => (Content::Parts(stalling(bytes, &fault)), length),
                Kind::SlowDrip => (Content::Parts(dripping(bytes, &fault)), length),
                _ => (whole(bytes), length),
            },
        };
        (
            Self {
                content,
                _under_way: under_way,
            },
            announced,
        )
    }
}

/// The body, and an end only once it has left: the server closes the connection when it finds it too short.
fn ending_early(bytes: Bytes) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    let ends = stream::once(async {
        tokio::time::sleep(FLUSH_TIME).await;
        Bytes::new()
    });
    stream::iter([bytes]).chain(ends).boxed()
}

/// Half of the body, then a reset.
fn breaking(bytes: &Bytes, cut: Cut) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    let half = stream::iter([bytes.slice(..bytes.len() / 2)]);
    let breaks = stream::once(async move {
        tokio::time::sleep(FLUSH_TIME).await;
        cut.reset();
        std::future::pending().await
    });
    half.chain(breaks).boxed()
}

fn stalling(mut bytes: Bytes, fault: &Fault) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    let before = bytes.split_to(fault.at_byte.min(bytes.len()));
    let pause = Duration::from_millis(fault.stall_ms);
    let rest = stream::once(async move {
        tokio::time::sleep(pause).await;
        bytes
    });
    stream::iter([before]).chain(rest).boxed()
}

fn dripping(bytes: Bytes, fault: &Fault) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    let portion = usize::try_from((fault.bytes_per_s / DRIPS_PER_S).max(1)).unwrap_or(usize::MAX);
    let speed = fault.bytes_per_s;
    stream::unfold(bytes, move |mut left| async move {
        if left.is_empty() {
            return None;
        }
        let drip = left.split_to(portion.min(left.len()));
        tokio::time::sleep(
            Duration::from_secs(drip.len() as u64) / u32::try_from(speed).unwrap_or(u32::MAX),
        )
        .await;
        Some((drip, left))
    })
    .boxed()
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Parts(parts) => parts
                .as_mut()
                .poll_next(context)
                .map(|part| part.map(|p| Ok(Frame::data(p)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Content::Parts(_) => SizeHint::default(),
        }
    }
}
