//! What is remembered, in PostgreSQL: limits, schedules, and webhooks that are to be called.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{PostgresLedger, bounded, run_uuid};
use crate::ledger::row::Cells;
use crate::ledger::{LedgerError, Memory, MemoryLedger, Webhook};

#[async_trait]
impl MemoryLedger for PostgresLedger {
    async fn remembered(&self, kind: Memory) -> Result<BTreeMap<String, String>, LedgerError> {
        bounded(async {
            let rows = sqlx::query("SELECT name, value FROM memory WHERE kind = $1")
                .bind(kind.as_str())
                .fetch_all(&self.pool)
                .await?;
            let read = |row| {
                let cells = Cells::new("memory", row);
                Ok((cells.text("name")?, cells.text("value")?))
            };
            rows.iter().map(read).collect()
        })
        .await
    }

    async fn remember(
        &self,
        kind: Memory,
        entries: &BTreeMap<String, String>,
    ) -> Result<(), LedgerError> {
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        let values: Vec<&str> = entries.values().map(String::as_str).collect();
        let change = sqlx::query(
            "INSERT INTO memory (kind, name, value) \
             SELECT $1, u.* FROM UNNEST($2::text[], $3::text[]) u \
             ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value",
        )
        .bind(kind.as_str())
        .bind(names)
        .bind(values);
        bounded(self.write(change)).await
    }

    async fn webhooks_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Webhook>, LedgerError> {
        bounded(async {
            let rows = sqlx::query(
                "SELECT * FROM runs WHERE webhook_due <= $1 ORDER BY webhook_due, id LIMIT $2",
            )
            .bind(now.as_millisecond())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
            let mut webhooks = Vec::with_capacity(rows.len());
            for row in &rows {
                let cells = Cells::runs(row);
                webhooks.push(Webhook {
                    run: self.with_statistics(cells.run()?).await?,
                    url: cells.text("webhook")?,
                    failures: cells.small_count("webhook_failures")?,
                });
            }
            Ok(webhooks)
        })
        .await
    }

    async fn next_webhook(&self) -> Result<Option<Timestamp>, LedgerError> {
        bounded(async {
            let row = sqlx::query(
                "SELECT min(webhook_due) AS due FROM runs WHERE webhook_due IS NOT NULL",
            )
            .fetch_one(&self.pool)
            .await?;
            Cells::runs(&row).optional_time("due")
        })
        .await
    }

    async fn webhook_called(
        &self,
        webhook: &Webhook,
        failures: u32,
        again: Option<Timestamp>,
    ) -> Result<(), LedgerError> {
        let change = sqlx::query(
            "UPDATE runs SET webhook_failures = $1, webhook_due = $2 \
             WHERE id = $3 AND finished_at = $4 AND webhook_due IS NOT NULL",
        )
        .bind(i64::from(failures))
        .bind(again.map(Timestamp::as_millisecond))
        .bind(run_uuid(webhook.run.run))
        .bind(webhook.run.finished_at.map(Timestamp::as_millisecond));
        bounded(self.write(change)).await
    }
}
