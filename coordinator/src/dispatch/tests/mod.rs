//! The dispatcher against a model of everything around it: no IO, no clock.

mod ledger;
mod rules;
mod simulation;
mod world;
