//! What is remembered, in SQLite: limits, schedules, and webhooks that are to be called.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;

use super::SqliteLedger;
use crate::ledger::row::Cells;
use crate::ledger::{LedgerError, Memory, MemoryLedger, Webhook};

#[async_trait]
impl MemoryLedger for SqliteLedger {
    async fn remembered(&self, kind: Memory) -> Result<BTreeMap<String, String>, LedgerError> {
        let rows = sqlx::query("SELECT name, value FROM memory WHERE kind = ?")
            .bind(kind.as_str())
            .fetch_all(&self.readers)
            .await?;
        let read = |row| {
            let cells = Cells::new("memory", row);
            Ok((cells.text("name")?, cells.text("value")?))
        };
        rows.iter().map(read).collect()
    }

    async fn remember(
        &self,
        kind: Memory,
        entries: &BTreeMap<String, String>,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "INSERT INTO memory (kind, name, value) SELECT ?, key, value FROM json_each(?) WHERE true \
             ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value",
        )
        .bind(kind.as_str())
        .bind(serde_json::json!(entries).to_string())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn webhooks_due(&self, now: Timestamp, limit: u32) -> Result<Vec<Webhook>, LedgerError> {
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE webhook_due <= ? ORDER BY webhook_due, id LIMIT ?",
        )
        .bind(now.as_millisecond())
        .bind(limit)
        .fetch_all(&self.readers)
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
    }

    async fn next_webhook(&self) -> Result<Option<Timestamp>, LedgerError> {
        let row =
            sqlx::query("SELECT min(webhook_due) AS due FROM runs WHERE webhook_due IS NOT NULL")
                .fetch_one(&self.readers)
                .await?;
        Cells::runs(&row).optional_time("due")
    }

    async fn webhook_called(
        &self,
        webhook: &Webhook,
        failures: u32,
        again: Option<Timestamp>,
    ) -> Result<(), LedgerError> {
        sqlx::query(
            "UPDATE runs SET webhook_failures = ?, webhook_due = ? \
             WHERE id = ? AND finished_at = ? AND webhook_due IS NOT NULL",
        )
        .bind(failures)
        .bind(again.map(Timestamp::as_millisecond))
        .bind(webhook.run.run.as_bytes().as_slice())
        .bind(webhook.run.finished_at.map(Timestamp::as_millisecond))
        .execute(&self.writer)
        .await?;
        Ok(())
    }
}
