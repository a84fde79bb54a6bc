//! The dispatcher against a model of everything around it, without IO or clock; and the stage around it.

mod doubts;
mod ledger;
mod rules;
mod simulation;
mod world;
