//! The tests of the program, in one binary. A module a subject.

mod command;

mod check;
mod cli;
#[cfg(target_os = "linux")]
mod drivers;
#[cfg(target_os = "linux")]
mod tint;
