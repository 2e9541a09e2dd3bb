//! Kullback-Leibler divergence.

use super::elements::{Elementwise, Point};
use super::options::{Numbers, Opt, Others, flag, reduction};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::times;

/// Kullback-Leibler divergence of targets from log-probabilities, element by element.
///
/// With `x` a log-probability and `t` a probability, or its logarithm with
/// [`log_target`](Self::log_target), in nats:
///
/// ```text
/// loss = t (ln t - x)        with log_target   e^t (t - x)
/// grad = -t                  with log_target   -e^t
/// ```
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `target` | the input's | the input's |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides by the number of elements, `batchmean` by the size of the first
/// dimension, which makes it the divergence of distributions in rows.
///
/// # Edges
/// - A target of 0 (with `log_target`: -inf) costs nothing whatever the input; any other one costs
///   an infinity where the input is -inf. A negative target's loss is NaN.
/// - No elements: mean NaN, sum 0; `batchmean` NaN without rows (shape `[0, C]`), 0 with rows of no
///   elements (`[N, 0]`).
/// - A NaN target makes loss and gradient NaN, a NaN input the loss alone: the gradient does not depend
///   on the input, which backward takes for its layout and does not read.
///
/// Source: PyTorch's `torch.nn.KLDivLoss`; Kullback and Leibler, "On Information and Sufficiency",
/// 1951.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, KlDiv, Reduction};
///
/// let gpu = Gpu::blocking()?;
/// let (input, target) = ([-0.4, -1.9, -1.6_f32], [0.7, 0.1, 0.2_f32]);
/// let args = Args::new(Array::from(&input)).target(Array::from(&target));
/// let op = KlDiv::default().reduction(Reduction::BatchMean);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct KlDiv {
    pub(crate) reduction: Reduction,
    pub(crate) log_target: bool,
}

impl KlDiv {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Whether targets are log-probabilities. Default: no.
    pub fn log_target(mut self, log_target: bool) -> Self {
        self.log_target = log_target;
        self
    }
}

impl Elementwise for KlDiv {
    const NAME: &'static str = "kl_div";
    const ABOUT: &'static str =
        "Kullback-Leibler divergence of probabilities from log-probabilities";
    const SHADER: File = shader!("ops/kl_div.wgsl");
    const GRAD_READS_INPUT: bool = false;
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(
            &[Reduction::None, Reduction::Mean, Reduction::Sum, Reduction::BatchMean],
            |op| &mut op.reduction,
        ),
        flag("log_target", "Targets are log-probabilities", |op| &mut op.log_target),
    ];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![("LOG_TARGET", self.log_target.into())]
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        let target =
            if self.log_target { Numbers::LogProbabilities } else { Numbers::Probabilities };
        (Numbers::LogProbabilities, target, Others::Taken)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        if self.log_target {
            // a factor is 0 at -inf alone, and not where it underflows
            let p = if t.is_finite() { t.exp().max(f64::MIN_POSITIVE) } else { t.exp() };
            return Point::new([times(p, t), -times(p, x)], [-p]);
        }
        Point::new([times(t, t.ln()), -times(t, x)], [-t])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        if self.log_target {
            // e^t as a square, since it may underflow where the loss does not; 0 at -inf alone
            let least = max(t, -174.0);
            let root = select(t == f32::NEG_INFINITY, 0.0, exp(0.5 * least));
            let loss = zero_wins(root, root * (least - x));
            return Point { loss, grad: -exp(t) };
        }
        // 0 ln 0 is 0; the logarithm of a negative number is NaN
        let loss = zero_wins(t, ln(t) - x);
        Point { loss: select(t < 0.0, f32::NAN, loss), grad: -t }
    }
}
