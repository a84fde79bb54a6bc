//! One coordinator at a time owns the ledger: it leases the lanes for a while, and again before that ends.
//!
//! Being late is no harm to the ledger. Only a takeover ends a lease, and raises the epoch; each write holds on
//! to the rows that it found its own epoch in, so a takeover waits for the writes under way, and finds no
//! other after. The database's clock alone says what has run out. For what is done without a write there is
//! [`Lease::is_sure`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::name::Instance;
use sqlx::{PgConnection, PgPool};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ledger::LedgerError;

/// How often somebody who waits looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long a lease lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseTimes {
    /// From one renewal on: the longest that a successor waits for a coordinator that died.
    pub(super) length: Duration,
    /// From renewal to renewal: three may fail.
    pub(super) renewal: Duration,
    /// How much longer than `length` a successor waits: for the locks of a frozen predecessor.
    pub(super) patience: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(10),
            renewal: Duration::from_secs(3),
            patience: Duration::from_secs(5),
        }
    }
}

/// All lanes, leased by this process. Dropping it gives them back, in the background.
#[derive(Debug)]
pub(super) struct Lease {
    name: Name,
    lost: CancellationToken,
    released: CancellationToken,
    keeper: TaskTracker,
    /// Until when nobody else can have the lanes.
    sure_until: Arc<Mutex<Instant>>,
}

/// What this lease looks like in the table.
#[derive(Debug, Clone)]
struct Name {
    address: String,
    owner: String,
    epoch: i64,
}

impl Lease {
    /// Leases the lanes, once nobody else does; waits a bit longer than a lease for that.
    pub(super) async fn acquire(
        pool: &PgPool,
        address: &str,
        lanes: u16,
        owner: &Instance,
        times: LeaseTimes,
    ) -> Result<Self, LedgerError> {
        let give_up = Instant::now() + times.length + times.patience;
        let mut asked;
        let epoch = loop {
            asked = Instant::now();
            let other = match other_owner(pool, owner).await? {
                Some(other) => other,
                None => match take(pool, lanes, owner, times.length).await? {
                    Taken::Epoch(epoch) => break epoch,
                    Taken::Other(other) => other,
                },
            };
            if Instant::now() >= give_up {
                return Err(LedgerError::Owned {
                    address: address.to_owned(),
                    owner: other,
                });
            }
            tracing::debug!(owner = other, "waiting for the lease of the ledger");
            sleep(LOOK_AGAIN).await;
        };
        let lease = Self {
            name: Name {
                address: address.to_owned(),
                owner: owner.to_string(),
                epoch,
            },
            lost: CancellationToken::new(),
            released: CancellationToken::new(),
            keeper: TaskTracker::new(),
            sure_until: Arc::new(Mutex::new(asked + times.length)),
        };
        let (name, lost) = (lease.name.clone(), lease.lost.clone());
        let keeping = name.keep(
            pool.clone(),
            times,
            lost,
            lease.released.clone(),
            lease.sure_until.clone(),
        );
        lease.keeper.spawn(keeping);
        Ok(lease)
    }

    /// Makes sure that the lease holds until the transaction ends.
    pub(super) async fn check(&self, transaction: &mut PgConnection) -> Result<(), LedgerError> {
        let lanes: Vec<(String, i64)> =
            sqlx::query_as("SELECT owner, epoch FROM lanes ORDER BY lane FOR KEY SHARE")
                .fetch_all(transaction)
                .await?;
        let Name { owner, epoch, .. } = &self.name;
        let others = |(by, at): &&(String, i64)| by != owner || at != epoch;
        match lanes.iter().find(others) {
            None if !lanes.is_empty() => Ok(()),
            other => {
                self.lost.cancel();
                Err(self.name.owned_by(other.map(|(owner, _)| owner.clone())))
            }
        }
    }

    /// Whether nobody else can have the lanes now.
    pub(super) fn is_sure(&self) -> bool {
        let until = *self
            .sure_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Instant::now() < until && !self.lost.is_cancelled()
    }

    /// Renews no more and gives nothing back, as a process that died.
    #[cfg(test)]
    pub(super) fn abandon(&self) {
        self.lost.cancel();
    }

    /// Waits until another process has taken the lanes over.
    pub(super) async fn lost(&self) -> LedgerError {
        self.lost.cancelled().await;
        self.name.owned_by(None)
    }

    /// Gives the lanes back, so that a successor need not wait.
    pub(super) async fn release(&self) {
        self.released.cancel();
        self.keeper.close();
        self.keeper.wait().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.released.cancel();
    }
}

impl Name {
    fn owned_by(&self, owner: Option<String>) -> LedgerError {
        LedgerError::Owned {
            address: self.address.clone(),
            owner: owner.unwrap_or_else(|| "another coordinator".to_owned()),
        }
    }

    /// Renews the lease until it is lost or released. A database that is away is tried again: perhaps it is for
    /// everybody.
    async fn keep(
        self,
        pool: PgPool,
        times: LeaseTimes,
        lost: CancellationToken,
        released: CancellationToken,
        sure_until: Arc<Mutex<Instant>>,
    ) {
        loop {
            tokio::select! {
                () = sleep(times.renewal) => {}
                () = released.cancelled() => break,
                () = lost.cancelled() => return,
            }
            let asked = Instant::now();
            match timeout(times.renewal, self.extend(&pool, times.length)).await {
                Ok(Ok(true)) => {
                    let mut until = sure_until.lock().unwrap_or_else(PoisonError::into_inner);
                    *until = asked + times.length;
                }
                Ok(Ok(false)) => {
                    tracing::error!(
                        epoch = self.epoch,
                        "another coordinator has taken the ledger over"
                    );
                    lost.cancel();
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the lease of the ledger"),
                Err(_) => tracing::warn!("cannot renew the lease of the ledger: no answer"),
            }
        }
        // Best effort: without it, the lease runs out by itself.
        let _ = timeout(times.renewal, self.extend(&pool, Duration::ZERO)).await;
    }

    /// Makes the lease end that much later than now, and says whether it still is ours.
    async fn extend(&self, pool: &PgPool, length: Duration) -> Result<bool, sqlx::Error> {
        let lanes = sqlx::query(
            "UPDATE lanes SET until = clock_timestamp() + make_interval(secs => $3) \
             WHERE owner = $1 AND epoch = $2",
        )
        .bind(&self.owner)
        .bind(self.epoch)
        .bind(length.as_secs_f64())
        .execute(pool)
        .await?;
        Ok(lanes.rows_affected() > 0)
    }
}

/// Who has a lane now. Looks without a lock: waiting for one would hold up the owner's writes.
async fn other_owner(pool: &PgPool, owner: &Instance) -> Result<Option<String>, LedgerError> {
    let other = sqlx::query_scalar(
        "SELECT owner FROM lanes WHERE owner <> $1 AND until > clock_timestamp() ORDER BY lane LIMIT 1",
    )
    .bind(owner.as_str())
    .fetch_optional(pool)
    .await?;
    Ok(other)
}

/// What became of an attempt to take the lanes.
enum Taken {
    /// They are ours.
    Epoch(i64),
    /// Somebody was faster.
    Other(String),
}

/// Takes all lanes, those of an earlier configuration included, if nobody else has one of them.
async fn take(
    pool: &PgPool,
    lanes: u16,
    owner: &Instance,
    length: Duration,
) -> Result<Taken, LedgerError> {
    let mut transaction = pool.begin().await?;
    sqlx::query(
        "INSERT INTO lanes (lane, owner, epoch, until) SELECT lane, '', 0, '-infinity' \
         FROM generate_series(0, $1 - 1) lane ON CONFLICT DO NOTHING",
    )
    .bind(i64::from(lanes))
    .execute(&mut *transaction)
    .await?;
    let found: Vec<(String, i64, bool)> = sqlx::query_as(
        "SELECT owner, epoch, until > clock_timestamp() FROM lanes ORDER BY lane FOR UPDATE",
    )
    .fetch_all(&mut *transaction)
    .await?;
    let other = |(by, _, held): &&(String, i64, bool)| *held && by != owner.as_str();
    if let Some((other, ..)) = found.iter().find(other) {
        return Ok(Taken::Other(other.clone()));
    }
    let epoch = found.iter().map(|(_, epoch, _)| epoch).max();
    let epoch = epoch.copied().unwrap_or_default() + 1;
    sqlx::query(
        "UPDATE lanes SET owner = $1, epoch = $2, until = clock_timestamp() + make_interval(secs => $3)",
    )
    .bind(owner.as_str())
    .bind(epoch)
    .bind(length.as_secs_f64())
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Taken::Epoch(epoch))
}
