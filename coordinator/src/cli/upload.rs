//! Streams batches into a submission: a thread reads and checks, the request's body takes what is ready.

use std::io;
use std::sync::mpsc;

use bytes::Bytes;
use futures::stream;

use crate::items::{ItemsError, NewBatch};

/// How much goes into one piece of the body.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that wait for the network; more would only be memory.
const PIECES_AHEAD: usize = 4;

/// A submission's body, and how reading it ended.
#[derive(Debug)]
pub(crate) struct Upload {
    /// NDJSON, one batch a line. It breaks off when an item is bad, which the coordinator takes for
    /// a client that went away: it keeps nothing.
    pub(crate) body: reqwest::Body,
    /// The bad item, if that is why the body broke off. It is there before the request ends.
    pub(crate) problem: mpsc::Receiver<ItemsError>,
}

impl Upload {
    /// Starts reading.
    pub(crate) fn start(
        batches: impl Iterator<Item = Result<NewBatch, ItemsError>> + Send + 'static,
    ) -> Self {
        let (pieces, mut ready) = tokio::sync::mpsc::channel(PIECES_AHEAD);
        let (report, problem) = mpsc::channel();
        // A thread of its own, not the runtime's: a read from a silent stdin cannot be called off, and must
        // not hold up the end of the process.
        std::thread::spawn(move || {
            if let Err(error) = send(batches, &pieces) {
                let _ = report.send(error);
                let _ = pieces.blocking_send(Err(io::Error::other("the input is bad")));
            }
        });
        let body = stream::poll_fn(move |context| ready.poll_recv(context));
        Self {
            body: reqwest::Body::wrap_stream(body),
            problem,
        }
    }
}

fn send(
    batches: impl Iterator<Item = Result<NewBatch, ItemsError>>,
    pieces: &tokio::sync::mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), ItemsError> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for batch in batches {
        batch?.write_line(&mut piece);
        if piece.len() >= PIECE_BYTES
            && pieces
                .blocking_send(Ok(std::mem::take(&mut piece).into()))
                .is_err()
        {
            // The request has ended already, and says itself why.
            return Ok(());
        }
    }
    let _ = pieces.blocking_send(Ok(piece.into()));
    Ok(())
}
