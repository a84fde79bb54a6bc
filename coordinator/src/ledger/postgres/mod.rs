//! The ledger in a PostgreSQL database.
//!
//! Groups travel as arrays, so a group of a thousand costs a few statements, not thousands. Locks are
//! always taken in this order, so that nobody waits in a circle: the lease (shared), runs by id, pipelines
//! by name. Whoever changes the state of a batch holds its run, so batches need no locks of their
//! own.

mod connect;
mod dead;
mod dispatch;
mod lease;
mod memory;
mod operations;
mod reconciliation;
mod settlement;
mod submission;
mod transaction;
mod views;
mod write;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use shared::id::{BatchId, RunId};
use shared::name::Instance;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

use self::lease::{Lease, LeaseTimes};
use self::transaction::Write;
use super::{Ledger, LedgerError, Ownership};

/// How long one operation may take, waiting for a connection included. A bit more than the server allows a
/// statement, so that its words are heard; without it, a network that swallows packets would be waited for
/// until TCP gives up.
const OPERATION_TIMEOUT: Duration = Duration::from_mins(1);

/// The ledger in a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresLedger {
    pool: PgPool,
    lease: Arc<Lease>,
    /// Rung when nobody knows whether a commit happened.
    doubts: Arc<Notify>,
}

impl PostgresLedger {
    /// Connects, brings the tables up to date, leases `lanes` lanes for `owner`, and removes what a crash
    /// left half submitted. Waits for a database that starts, and for the lease of a predecessor that died;
    /// `address` names the database in errors.
    pub async fn open(
        url: &SecretString,
        address: &str,
        lanes: u16,
        owner: &Instance,
    ) -> Result<Self, LedgerError> {
        Self::open_for(url, address, lanes, owner, LeaseTimes::default()).await
    }

    async fn open_for(
        url: &SecretString,
        address: &str,
        lanes: u16,
        owner: &Instance,
        times: LeaseTimes,
    ) -> Result<Self, LedgerError> {
        let pool = connect::connect(url, address).await?;
        // A program that may not have the lease does not change the tables of the one that has it; only in
        // an empty database they come first.
        let is_new = connect::version(&pool, address).await?.is_none();
        if is_new {
            connect::migrate(&pool, address).await?;
        }
        let lease = Lease::acquire(&pool, address, lanes, owner, times).await?;
        let ledger = Self {
            pool,
            lease: Arc::new(lease),
            doubts: Arc::default(),
        };
        connect::migrate(&ledger.pool, address).await?;
        ledger.remove_half_submitted().await?;
        Ok(ledger)
    }

    /// A transaction that only the owner of the ledger gets.
    async fn begin(&self) -> Result<Write, LedgerError> {
        let mut write = Write::new(self.pool.begin().await?, self.doubts.clone());
        self.lease.check(&mut write).await?;
        Ok(write)
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn lost(&self) -> LedgerError {
        self.lease.lost().await
    }

    async fn release(&self) {
        self.lease.release().await;
    }
}

impl Ownership for PostgresLedger {
    fn is_sure(&self) -> bool {
        self.lease.is_sure()
    }
}

/// A database that does not answer is away.
async fn bounded<T>(
    operation: impl Future<Output = Result<T, LedgerError>> + Send,
) -> Result<T, LedgerError> {
    timeout(OPERATION_TIMEOUT, operation)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
}

fn batch_uuid(id: BatchId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

fn run_uuid(id: RunId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

#[cfg(test)]
mod tests;
