//! wgloss's cross entropy over several processes: classes or rows divided among ranks of MPI.
//!
//! A [shard](Shards) of the classes tells the others eight numbers a row, once; all merge them in the order of
//! ranks, and come to the same bits. [`Batch`] divides rows. Either is a few lines around the call
//! of one process:
//!
//! ```no_run
//! use wgloss::{Args, Array, LinearCrossEntropy};
//! use wgloss_mpi::{Ranks, Shards};
//!
//! let universe = mpi::initialize().expect("MPI");
//! let ranks = Ranks::new(&universe.world())?;
//! let gpu = ranks.gpu()?;
//! let shards = Shards::new(&ranks, 128_256)?;
//! # let (hidden, projection, target) = (vec![0.0_f32; 8 * 64], vec![0.0_f32; shards.range().len() * 64], [0; 8]);
//! let args = Args::new(Array::new(&hidden, &[8, 64])?)
//!     .projection(Array::new(&projection, &[shards.range().len(), 64])?)
//!     .target(Array::from(&target));
//! let out = shards.forward_backward(&gpu, &LinearCrossEntropy::default(), &args)?;
//! # let _ = (out.loss()?, out.grad()?, out.grad_projection()?);
//! # Ok::<_, wgloss_mpi::Error>(())
//! ```
//!
//! # When ranks differ, or one is gone
//! Ranks compare what they must have in common before each exchange, and those that fail say so in it: the others
//! then get an error and no wrong number. Every wait ends after [`Ranks::deadline`]. What MPI adds to
//! that is told in README.

mod error;
mod transport;
mod agree;
mod ranks;
mod engine;
mod shards;
mod batch;

pub use batch::Batch;
pub use engine::Engine;
pub use error::{Error, Result};
pub use ranks::Ranks;
pub use shards::{Shards, Started, Told};

pub use mpi;
pub use wgloss;
