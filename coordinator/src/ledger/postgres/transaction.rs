//! A transaction of the ledger's owner, and what is known of it when the answer to its commit is lost.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::Notify;

/// A transaction that only the owner of the ledger gets. Dropped, it changes nothing.
pub(super) struct Write {
    transaction: Transaction<'static, Postgres>,
    doubts: Arc<Notify>,
}

impl Write {
    pub(super) fn new(transaction: Transaction<'static, Postgres>, doubts: Arc<Notify>) -> Self {
        Self {
            transaction,
            doubts,
        }
    }

    /// Makes it happen. On an error, or when nobody waits for the answer any more, it may have happened or not.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let mut doubt = Doubt(Some(self.doubts));
        self.transaction.commit().await?;
        doubt.0 = None;
        Ok(())
    }
}

impl Deref for Write {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

/// Rings when it is dropped, unless it was resolved.
struct Doubt(Option<Arc<Notify>>);

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(doubts) = &self.0 {
            tracing::warn!("no answer to a commit: it may have happened or not");
            metrics::counter!("tidegate_ledger_doubts_total").increment(1);
            doubts.notify_one();
        }
    }
}
