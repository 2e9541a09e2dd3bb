//! The tests of the program, in one binary. A module a subject.

mod command;

mod check;
mod cli;
mod files;
mod fuzz;
mod linear;
mod reports;
#[cfg(unix)]
mod signals;
#[cfg(target_os = "linux")]
mod drivers;
#[cfg(target_os = "linux")]
mod tint;
