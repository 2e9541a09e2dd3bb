//! The CPU form of the kernels: every op in f32, on all cores, with the widest vectors that the
//! machine has.

// Loops walk several arrays of lanes by one index.
#![allow(clippy::needless_range_loop)]

mod math;
mod storage;
mod threads;
mod tiles;
mod labels;
mod elements;
mod row_state;
mod row_partials;
mod rows;
mod row_maps;
mod gather;
mod linear_cross_entropy;

use std::fmt;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

pub(crate) use elements::{Point, elements};
pub(crate) use gather::nll_loss;
pub(crate) use linear_cross_entropy::linear_cross_entropy;
pub(crate) use row_maps::{log_softmax, softmax};
pub(crate) use rows::cross_entropy;

/// What the hooks of element-wise ops are written in.
pub(crate) mod prelude {
    pub(crate) use super::Point;
    pub(crate) use super::math::{
        Logistic, exp, ln, log1p_unit, logistic, max, min, power, select, sign, zero_wins,
    };
}

use crate::shape::Layout;
use crate::{Args, Array, DType, Data, Error, Op, Output, Pass, Result};

/// The CPU, for host arrays: the same ops with the same options, checks and results as
/// [`Gpu`](crate::Gpu), without a GPU.
///
/// Arithmetic is f32, and keeps the same promise. Each row or block of elements is read once from
/// memory, and loss and gradient made of it while it is in the cache. Results are the same to the
/// bit whatever the number of threads.
///
/// ```
/// use wgloss::{Args, Array, Cpu, CrossEntropy};
///
/// let (logits, target) = ([2.0, -1.0, 0.5, 0.1, 3.0, -2.0_f32], [0, 1]);
/// let args = Args::new(Array::new(&logits, &[2, 3])?).target(Array::from(&target));
/// let out = Cpu::default().forward_backward(&CrossEntropy::default(), &args)?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Cpu {
    /// Threads of its own; those of rayon's global pool otherwise.
    pool: Option<Arc<ThreadPool>>,
}

impl Cpu {
    /// With so many threads of its own. [`Cpu::default`] shares rayon's global pool: one a core, or
    /// as many as `RAYON_NUM_THREADS` says; where the system gives none, it works on the caller's
    /// thread.
    ///
    /// # Errors
    /// [`Error::Value`] for no threads, [`Error::Internal`] when the system does not give them.
    pub fn with_threads(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::Value {
                argument: "threads",
                expected: "at least 1".into(),
                actual: "0".into(),
            });
        }
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Error::Internal(error.to_string()))?;
        Ok(Cpu { pool: Some(Arc::new(pool)) })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(threads::count, |p| p.current_num_threads())
    }

    /// Computes the loss.
    ///
    /// # Errors
    /// What the op refuses: [`Op::outputs`], and the values that it documents.
    pub fn forward(&self, op: &dyn Op, args: &Args<Array<'_>>) -> Result<Output<Array<'static>>> {
        self.run(op, Pass::Forward, args)
    }

    /// Computes the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Cpu::forward`].
    pub fn backward(&self, op: &dyn Op, args: &Args<Array<'_>>) -> Result<Output<Array<'static>>> {
        self.run(op, Pass::Backward, args)
    }

    /// Computes the loss and the gradient with respect to the input, times the upstream gradient.
    ///
    /// # Errors
    /// As [`Cpu::forward`].
    pub fn forward_backward(
        &self,
        op: &dyn Op,
        args: &Args<Array<'_>>,
    ) -> Result<Output<Array<'static>>> {
        self.run(op, Pass::ForwardBackward, args)
    }

    /// Computes whichever pass.
    ///
    /// # Errors
    /// As [`Cpu::forward`].
    pub fn run(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'_>>,
    ) -> Result<Output<Array<'static>>> {
        let mut output = Output::default();
        self.run_into(op, pass, args, &mut output)?;
        Ok(output)
    }

    /// Computes whichever pass into arrays that are there already, such as those of the last step:
    /// large new ones cost more time than what is computed into them. An array that is missing, or
    /// is of another shape or storage type, is replaced by a new one.
    ///
    /// ```
    /// # use wgloss::{Args, Array, Cpu, Mse, Output, Pass};
    /// # let (cpu, mut output) = (Cpu::default(), Output::default());
    /// # let (input, target) = ([0.5, 2.0_f32], [1.0, 1.0_f32]);
    /// for _step in 0..10 {
    ///     let args = Args::new(Array::from(&input)).target(Array::from(&target));
    ///     cpu.run_into(&Mse::default(), Pass::ForwardBackward, &args, &mut output)?;
    /// }
    /// # Ok::<_, wgloss::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Cpu::forward`]; results that were there are as they were.
    pub fn run_into(
        &self,
        op: &dyn Op,
        pass: Pass,
        args: &Args<Array<'_>>,
        output: &mut Output<Array<'static>>,
    ) -> Result<()> {
        let wanted = op.outputs(pass, &args.layouts())?;
        op.check_values(args)?;
        let mut given = std::mem::take(output);
        *output = wanted.try_map(|role, layout| fitting(given.take(role), layout))?;
        match &self.pool {
            Some(pool) => pool.install(|| op.cpu(args, output)),
            None => op.cpu(args, output),
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.threads()).finish()
    }
}

/// An array of a layout: the one given, if it has it.
fn fitting(given: Option<Array<'static>>, layout: &Layout) -> Result<Array<'static>> {
    if let Some(given) = given.filter(|given| given.layout() == layout) {
        return Ok(given);
    }
    let (count, shape) = (layout.elements(), layout.shape());
    match layout.dtype() {
        DType::F32 => Array::from_vec(vec![0.0_f32; count], shape),
        DType::F16 => Array::from_vec(vec![half::f16::ZERO; count], shape),
        DType::Bf16 => Array::from_vec(vec![half::bf16::ZERO; count], shape),
        DType::I32 => Array::from_vec(vec![0_i32; count], shape),
        DType::I64 => Array::from_vec(vec![0_i64; count], shape),
        DType::F64 => Array::from_data(Data::F64(vec![0.0; count].into()), shape),
    }
}
