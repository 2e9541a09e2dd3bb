//! What can go wrong between processes.

use std::time::Duration;

/// Why a call failed. Every rank gets an error from a call in which one rank fails before or during an
/// exchange: none waits for what does not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This rank's own loss failed. The others get [`Error::Failed`].
    #[error(transparent)]
    Loss(#[from] wgloss::Error),
    /// Ranks that must say the same do not. Every rank gets the same error.
    #[error("{what}: {theirs} on rank {rank}, {first} on rank 0")]
    Disagree {
        /// What differs: a size, a type, an option, the version of this crate.
        what: String,
        /// The first rank that differs from rank 0.
        rank: usize,
        /// What it says.
        theirs: String,
        /// What rank 0 says.
        first: String,
    },
    /// The classes of the ranks are not all classes, one shard after the other. Every rank gets the same
    /// error.
    #[error(
        "rank {rank} has classes {first} to {end} of {classes}, expected them to begin at {expected}"
    )]
    Cover {
        /// The first rank whose shard does not begin where that before it ends; the last, where the last
        /// shard does not end with the last class.
        rank: usize,
        /// Its first class.
        first: usize,
        /// The class after its last.
        end: usize,
        /// How many there are in all.
        classes: usize,
        /// Where it should begin, or what its end should be.
        expected: String,
    },
    /// Another rank failed, and said so in place of its part of the exchange.
    #[error("rank {rank} failed: its own error tells why")]
    Failed {
        /// The first rank that did.
        rank: usize,
    },
    /// Not all ranks took part in an exchange in time: one is dead, is elsewhere, or is slower than
    /// [`Ranks::deadline`](crate::Ranks::deadline). The communicator cannot be used any more.
    #[error("{what}: not all of {ranks} ranks took part within {deadline:?}")]
    Timeout {
        /// Which exchange.
        what: &'static str,
        /// How many ranks there are.
        ranks: usize,
        /// How long this rank waited.
        deadline: Duration,
    },
    /// An earlier exchange failed or was given up, so that MPI may still be busy with it: this one was not begun.
    #[error("{what}: an earlier exchange of these ranks was not finished")]
    Broken {
        /// Which exchange.
        what: &'static str,
    },
    /// MPI returned an error.
    #[error("{what}: MPI says {message}")]
    Mpi {
        /// What was called.
        what: &'static str,
        /// MPI's words.
        message: String,
    },
    /// An argument of this crate.
    #[error("{argument}: expected {expected}, got {actual}")]
    Value {
        /// Which.
        argument: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        actual: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
