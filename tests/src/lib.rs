//! The lab of network namespaces, and what runs in it: end-to-end tests, demo and benchmark.

pub mod bench;
pub mod demo;
pub mod lab;
pub mod testrun;
