//! Poisson negative log-likelihood.

use super::elements::{Elementwise, Point};
use super::options::{
    Numbers, Opt, Others, REDUCTIONS, equal_by_options, finite, flag, number, reduction,
};
use crate::Reduction;
#[cfg(feature = "cpu")]
use crate::cpu;
use crate::kernel::{File, shader};
use crate::reference::times;

/// Negative log-likelihood of counts under Poisson distributions, element by element.
///
/// With `x` the logarithm of a distribution's rate, or with [`log_input`](Self::log_input) off the rate,
/// and `t` the count, in nats and but for `ln t!`:
///
/// ```text
/// loss = e^x - t x           without log_input   x - t ln(x + eps)
/// grad = e^x - t             without log_input   1 - t / (x + eps)
/// ```
///
/// [`full`](Self::full) adds Stirling's approximation of `ln t!` where `t > 1`:
/// `t ln t - t + ln(2 pi t) / 2`.
///
/// # Arguments
/// | name | shape | storage |
/// | --- | --- | --- |
/// | `input` | any, 0-dimensional too | f32, f16 or bf16 |
/// | `target` | the input's | the input's |
/// | `upstream` | one value (mean, sum) or the input's shape (none) | f32 for one value, else the input's |
///
/// # Reductions
/// `mean` (the default) divides by the number of elements.
///
/// # Edges
/// - Where `e^x` is beyond f32, from x = 88.73 on, loss and gradient are infinite. At a rate of infinity
///   the loss is infinite; PyTorch gives NaN there unless the target is 0.
/// - A target of 0 costs the rate alone, whatever its logarithm: at x = -inf, or at `x + eps = 0`, nothing.
///   Any other one costs an infinity there.
/// - Without `log_input`, an input below `-eps` has a loss of NaN, and the gradient of the formula.
/// - Any number is accepted as a target, but nothing is promised of infinite ones.
/// - A subnormal rate may count as 0, since GPUs may flush it.
/// - No elements: mean NaN, sum 0.
/// - A NaN input or target makes loss and gradient NaN.
///
/// Source: PyTorch's `torch.nn.PoissonNLLLoss`.
///
/// ```no_run
/// use wgloss::{Args, Array, Gpu, PoissonNll};
///
/// let gpu = Gpu::blocking()?;
/// let (log_rates, counts) = ([0.7, -0.5, 1.1_f32], [2.0, 0.0, 4.0_f32]);
/// let args = Args::new(Array::from(&log_rates)).target(Array::from(&counts));
/// let op = PoissonNll::default().full(true);
/// let out = gpu.block_on(gpu.forward_backward(&op, &args))?;
/// println!("loss {}, gradient {:?}", out.loss()?.item()?, out.grad()?.to_f32());
/// # Ok::<_, wgloss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PoissonNll {
    pub(crate) reduction: Reduction,
    pub(crate) log_input: bool,
    pub(crate) full: bool,
    pub(crate) eps: f64,
}

impl Default for PoissonNll {
    fn default() -> Self {
        PoissonNll { reduction: Reduction::Mean, log_input: true, full: false, eps: 1e-8 }
    }
}

impl PoissonNll {
    /// How the elements' losses become the result. Default: mean.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Whether inputs are the logarithms of rates. Default: yes.
    pub fn log_input(mut self, log_input: bool) -> Self {
        self.log_input = log_input;
        self
    }

    /// Whether Stirling's term is added. Default: no.
    pub fn full(mut self, full: bool) -> Self {
        self.full = full;
        self
    }

    /// What is added to rates before their logarithm is taken: 0 or more; rounded to f32. Default: 1e-8.
    /// With `log_input` it has no effect.
    pub fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }
}

equal_by_options!(PoissonNll);

impl Elementwise for PoissonNll {
    const NAME: &'static str = "poisson_nll";
    const ABOUT: &'static str = "Negative log-likelihood of counts under Poisson distributions";
    const SHADER: File = shader!("ops/poisson_nll.wgsl");
    const OPTIONS: &'static [Opt<Self>] = &[
        reduction(REDUCTIONS, |op| &mut op.reduction),
        flag("log_input", "Inputs are the logarithms of rates", |op| &mut op.log_input),
        flag("full", "Adds Stirling's term where targets exceed 1", |op| &mut op.full),
        number(
            "eps",
            "What is added to rates before their logarithm is taken, 0 or more",
            finite("a finite number, 0 or more", |v| v >= 0.0, &[0.0, 1e-8, 1e-6, 0.25]),
            |op| &mut op.eps,
        ),
    ];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn settings(&self) -> Vec<f64> {
        vec![self.eps]
    }

    fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![("LOG_INPUT", self.log_input.into()), ("FULL", self.full.into())]
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        let input = if self.log_input { Numbers::LogRates } else { Numbers::Counts };
        (input, Numbers::Counts, Others::Taken)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let [a, b, c] = match self.full && t > 1.0 {
            true => [t * t.ln(), -t, 0.5 * (std::f64::consts::TAU * t).ln()],
            false => [0.0; 3],
        };
        if self.log_input {
            let rate = x.exp();
            // the rate outgrows the other term
            let cost = if rate.is_infinite() { 0.0 } else { -times(t, x) };
            return Point::new([rate, cost, a, b, c], [rate, -t]);
        }
        let rate = x + f64::from(self.eps as f32);
        let cost = if x == f64::INFINITY { 0.0 } else { -times(t, rate.ln()) };
        Point::new([x, cost, a, b, c], [1.0, -times(t, 1.0 / rate)])
    }

    #[cfg(feature = "cpu")]
    #[inline(always)]
    fn point(&self, x: f32, t: f32, _pos_weight: f32) -> cpu::Point {
        use crate::cpu::prelude::*;
        let ln_t = ln(t);
        // 2 pi apart, since 2 pi t may overflow
        let stirling = (t * ln_t - t) + (0.5 * ln_t + 0.918_938_5);
        let stirling = select(self.full & (t > 1.0), stirling, 0.0);
        if self.log_input {
            let rate = exp(x);
            let loss = rate - zero_wins(t, x);
            let loss = select(rate == f32::INFINITY, rate, loss);
            return Point { loss: loss + stirling, grad: rate - t };
        }
        let eps = self.eps as f32;
        let rate = x + eps;
        // near 1 what the sum's rounding loses may be all of the logarithm
        let lost = min(x, eps) - (rate - max(x, eps));
        let is_near_1 = (0.5..=2.0).contains(&rate);
        let ln_rate = ln(rate) + select(is_near_1, lost / rate, 0.0);
        let loss = x - zero_wins(t, ln_rate);
        let loss = select(x == f32::INFINITY, x, loss);
        // a target of 0 does not make a rate below 0 one
        let loss = select(rate < 0.0, f32::NAN, loss);
        Point { loss: loss + stirling, grad: 1.0 - zero_wins(t, 1.0 / rate) }
    }
}
