//! Tidegate's coordinator.
//!
//! It keeps state and computes nothing else: [`submission`] records a run, [`dispatch`] lets out as much
//! as the fleet can take, [`settlement`] records what became of it. The three meet at the [`ledger`] and
//! never call each other; a [`notice`] tells the dispatcher when to look again. [`presence`] knows the
//! workers, [`dead`] takes what nobody could read, [`ask`] answers the workers' questions, [`limits`] how fast
//! services may be called, [`claims`] who may run a batch again, [`reconcile`] finds what nobody has,
//! [`depths`] and [`levels`] see what piles up. [`schedules`] submit runs by the clock, [`webhooks`] tell who
//! waits for them. [`operations`] is what people do to runs, [`doctor`] what they ask when something is wrong;
//! [`api`] is for them and for programs, [`app`] wires it all. [`provision`] prepares a broker, by hand or with
//! [`definitions`].

pub mod api;
pub mod app;
pub mod ask;
pub mod claims;
pub mod consuming;
pub mod dead;
pub mod definitions;
pub mod depths;
pub mod dispatch;
pub mod doctor;
pub mod fleet;
pub mod ledger;
pub mod levels;
pub mod limits;
pub mod metrics;
pub mod notice;
pub mod operations;
pub mod presence;
pub mod provision;
pub mod quarantine;
pub mod reconcile;
pub mod run;
pub mod schedules;
pub mod settlement;
pub mod submission;
pub mod topology;
pub mod webhooks;
