//! What a load that has changed the database leaves: its connection, and what can be prepared for the next load.

use std::sync::Arc;

use crate::dataset::Dataset;
use crate::error::Error;
use crate::store::model::{self, Days};
use crate::store::{Connection, Database, StoreError, StoreResult, indexes};

/// What a load that has changed the database leaves to its caller. It is complete without anything more.
pub struct Session {
    pub connection: Connection,
    pub(super) database: Database,
    pub(super) busy: Vec<Busy>,
}

/// A dataset that changes in small steps again and again.
pub(super) struct Busy {
    pub(super) dataset: Arc<Dataset>,
    /// Whether its days lack what small changes are applied with.
    pub(super) lacks_occurrences: bool,
    pub(super) lacks_key_index: bool,
}

impl Busy {
    /// Prepares the dataset for the next small step.
    async fn prepare(&self, connection: &mut Connection) -> StoreResult<()> {
        if self.lacks_occurrences {
            model::refresh(connection, &self.dataset, Days::none()).await?;
        }
        if self.lacks_key_index {
            indexes::make_key_index(connection, &self.dataset).await?;
        }
        Ok(())
    }
}

impl Session {
    /// The error for the user.
    pub fn explain(&self, error: StoreError) -> Error {
        self.database.explain(error)
    }

    /// Builds what makes the next small load cheap, and closes the connection. If that fails, the next load only takes longer.
    pub async fn end(mut self) {
        for busy in &self.busy {
            let name = &busy.dataset.name;
            tracing::info!("{name}: preparing its tables for more small loads");
            if let Err(error) = busy.prepare(&mut self.connection).await {
                tracing::warn!("{name}: its tables are not prepared for more small loads, so these take longer: {error}");
            }
        }
        self.connection.close().await;
    }
}
