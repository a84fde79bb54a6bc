//! A link to PostgreSQL that loses the answers to commits: the server has committed, its client's connection
//! breaks, and the client cannot know.
//!
//! After crates.io's `chaosproxy`, which cuts links without looking at what travels on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use url::Url;

/// A simple query: its type, its length, its text. It travels in one piece, because nothing else waits to be sent.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
/// What the server answers, besides other things.
const COMMITTED: &[u8] = b"COMMIT\0";
const BUFFER: usize = 64 * 1024;

/// The link. It is cut for good when it is dropped.
#[derive(Debug)]
pub struct LossyLink {
    url: String,
    losses: Arc<Losses>,
    listening: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Losses {
    /// Of so many commits, the last one's answer is lost; 0: none is.
    every: AtomicU32,
    commits: AtomicU32,
    lost: AtomicU32,
}

impl LossyLink {
    /// A link to the database of this URL. Nothing is lost yet.
    pub async fn to(url: &str) -> Result<Self> {
        let mut url: Url = url.parse().context("the URL of a database")?;
        let host = url.host_str().context("a host")?.to_owned();
        let server = (host, url.port().context("a port")?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        url.set_port(Some(listener.local_addr()?.port()))
            .ok()
            .context("a URL with a port")?;
        let losses = Arc::new(Losses::default());
        Ok(Self {
            url: url.into(),
            losses: losses.clone(),
            listening: tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    // Unable to connect: the client sees its connection end.
                    if let Ok(server) = TcpStream::connect(server.clone()).await {
                        tokio::spawn(relay(client, server, losses.clone()));
                    }
                }
            }),
        })
    }

    /// The same database, over this link.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on, the answer to every so many-th commit is lost.
    pub fn lose_every(&self, commits: u32) {
        self.losses.every.store(commits, Ordering::SeqCst);
    }

    /// How many answers were lost.
    #[must_use]
    pub fn lost(&self) -> u32 {
        self.losses.lost.load(Ordering::SeqCst)
    }
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Losses {
    fn strikes(&self) -> bool {
        let commits = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let every = self.every.load(Ordering::SeqCst);
        every > 0 && commits.is_multiple_of(every)
    }
}

/// One connection, until one side ends it or its next commit's answer is lost. Both sides are closed then.
async fn relay(client: TcpStream, server: TcpStream, losses: Arc<Losses>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let doomed = AtomicBool::new(false);
    tokio::select! {
        _ = requests(from_client, to_server, &losses, &doomed) => {}
        _ = answers(from_server, to_client, &losses, &doomed) => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    losses: &Losses,
    doomed: &AtomicBool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        if contains(&buffer[..length], COMMIT) && losses.strikes() {
            doomed.store(true, Ordering::SeqCst);
        }
        to.write_all(&buffer[..length]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    losses: &Losses,
    doomed: &AtomicBool,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        if doomed.load(Ordering::SeqCst) && contains(&buffer[..length], COMMITTED) {
            losses.lost.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, PgConnection};

    use super::*;
    use crate::postgres::Postgres;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_committed_is_there_and_its_client_does_not_know() {
        let postgres = Postgres::start().unwrap();
        let url = postgres.new_database().unwrap();
        let link = LossyLink::to(&url).await.unwrap();
        let insert = async || {
            let mut connection = PgConnection::connect(link.url()).await.unwrap();
            let mut transaction = connection.begin().await.unwrap();
            sqlx::query("insert into t values (1)")
                .execute(&mut *transaction)
                .await
                .unwrap();
            transaction.commit().await
        };
        let database = url.rsplit('/').next().unwrap();
        postgres.psql(database, "create table t (a int)").unwrap();
        insert().await.unwrap();
        link.lose_every(1);
        insert().await.unwrap_err();
        link.lose_every(0);
        insert().await.unwrap();
        assert_eq!(link.lost(), 1);
        let rows = postgres.psql(database, "select count(*) from t").unwrap();
        assert_eq!(rows, "3\n");
    }
}
