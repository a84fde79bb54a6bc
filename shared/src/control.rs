//! What the coordinator tells all workers, over `tidegate.control`. Like presence it is said again and
//! again, so that a worker that missed a message, or starts, knows it seconds later.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::RunId;
use crate::name::Instance;

/// `type` of a control message.
pub const CONTROL_TYPE: &str = "tidegate.control.v1";
/// How often the coordinator repeats itself.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// What workers should know. Each message says everything; a newer one replaces it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Who speaks.
    pub coordinator: Instance,
    /// Runs that were cancelled and still have batches out: those need no work any more.
    pub cancelled: Vec<RunId>,
}
