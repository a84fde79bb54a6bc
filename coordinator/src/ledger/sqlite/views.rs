//! What people ask of the ledger, in SQLite.

use async_trait::async_trait;
use shared::id::RunId;
use sqlx::{QueryBuilder, Row, Sqlite};

use super::SqliteLedger;
use super::row::Cells;
use crate::ledger::{DeadFilter, LedgerError, LedgerViews};
use crate::run::{DeadBatch, Run, RunState};

#[async_trait]
impl LedgerViews for SqliteLedger {
    async fn run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        self.read_run(run).await
    }

    async fn runs(&self, state: Option<RunState>, limit: u32) -> Result<Vec<Run>, LedgerError> {
        let rows = sqlx::query(
            "SELECT * FROM runs WHERE state <> 'submitting' AND (?1 IS NULL OR state = ?1) ORDER BY id DESC LIMIT ?2",
        )
        .bind(state.map(RunState::as_str))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        let mut runs = Vec::with_capacity(rows.len());
        for row in &rows {
            runs.push(
                self.with_statistics(Cells { table: "runs", row }.run()?)
                    .await?,
            );
        }
        Ok(runs)
    }

    async fn dead(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadBatch>, LedgerError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT id, run, pipeline, key, attempt, due, coalesce(reason, '') AS reason, coalesce(error, '') AS error \
             FROM batches WHERE state = 3",
        );
        if let Some(run) = filter.run {
            query.push(" AND run = ").push_bind(run.as_bytes().to_vec());
        }
        if let Some(pipeline) = &filter.pipeline {
            query
                .push(" AND pipeline = ")
                .push_bind(pipeline.as_str().to_owned());
        }
        query
            .push(" ORDER BY due DESC, seq DESC LIMIT ")
            .push_bind(limit);
        let rows = query.build().fetch_all(&self.readers).await?;
        let read = |row| {
            let cells = Cells {
                table: "batches",
                row,
            };
            Ok(DeadBatch {
                batch: cells.batch_id("id")?,
                run: cells.run_id("run")?,
                pipeline: cells.pipeline("pipeline")?,
                key: cells.key("key")?,
                reason: cells.text("reason")?,
                error: cells.text("error")?,
                attempts: cells.small_count("attempt")?,
                died_at: cells.time("due")?,
            })
        };
        rows.iter().map(read).collect()
    }
}

impl SqliteLedger {
    pub(super) async fn read_run(&self, run: RunId) -> Result<Option<Run>, LedgerError> {
        let row = sqlx::query("SELECT * FROM runs WHERE id = ? AND state <> 'submitting'")
            .bind(run.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        match row {
            Some(row) => Ok(Some(
                self.with_statistics(
                    Cells {
                        table: "runs",
                        row: &row,
                    }
                    .run()?,
                )
                .await?,
            )),
            None => Ok(None),
        }
    }

    async fn with_statistics(&self, mut run: Run) -> Result<Run, LedgerError> {
        let rows = sqlx::query("SELECT name, value FROM run_statistics WHERE run = ?")
            .bind(run.run.as_bytes().as_slice())
            .fetch_all(&self.readers)
            .await?;
        for row in &rows {
            let value = Cells {
                table: "run_statistics",
                row,
            }
            .count("value")?;
            run.statistics.insert(row.try_get("name")?, value);
        }
        Ok(run)
    }
}
