//! A local stand-in for Google's Search Console API.

pub mod generator;
