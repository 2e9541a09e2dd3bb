//! A loss of one's own, held to the promise: the asymmetric loss for many labels (Ridnik et al.,
//! "Asymmetric Loss For Multi-Label Classification", 2021).
//!
//! ```sh
//! cargo run --release --features cpu --example custom_loss
//! ```

use wgloss::custom::{Elementwise, Point, Shader};
use wgloss::options::{Numbers, Others};
use wgloss::reference::{self, Tolerance, Values, compare};
use wgloss::{Args, Array, Cpu, DType, Error, Gpu, Pass, Reduction, Result, Role};

/// Of logits with targets in `[0, 1]`, with `p = sigmoid(x)` and `m = max(p - clip, 0)`:
///
/// ```text
/// loss = -t (1 - p)^gamma_pos ln p  -  (1 - t) m^gamma_neg ln(1 - m)
/// ```
#[derive(Debug, Clone)]
struct Asymmetric {
    gamma_neg: f64,
    gamma_pos: f64,
    clip: f64,
    reduction: Reduction,
}

/// settings[0] is gamma_pos, gamma_neg, clip and 1 - clip; settings[1] the logit of clip, as the sum of
/// two f32.
const HOOKS: &str = "
struct Parts { p: vec4<f32>, q: vec4<f32>, minus_ln_p: vec4<f32>, m: vec4<f32>, minus_ln_rest: vec4<f32> }

fn parts(x: vec4<f32>) -> Parts {
    let p = sigmoid4(x);
    let q = sigmoid4(-x);
    // p - clip is (1 - clip) p (1 - e^-d), where d is how far x lies above the logit of clip: the
    // difference itself would cancel there
    let half = tanh4(0.5 * max((x - params.settings[1].x) - params.settings[1].y, vec4(0.0)));
    let m = params.settings[0].w * p * (2.0 * half / (1.0 + half));
    let minus_ln_rest = -select(ln4(q + params.settings[0].z), log1p_unit(-min(m, vec4(0.5))), m <= vec4(0.5));
    return Parts(p, q, log1p_unit(exp_nonpositive(-abs(x))) + max(-x, vec4(0.0)), m, minus_ln_rest);
}

fn raised(v: vec4<f32>, y: f32) -> vec4<f32> {
    if y == 0.0 {
        return vec4(1.0);
    }
    return select(power4(v, y), vec4(0.0), v == vec4(0.0));
}

fn loss(e: Elements) -> vec4<f32> {
    let a = parts(e.x);
    return zero_wins(e.t, raised(a.q, params.settings[0].x) * a.minus_ln_p)
        + zero_wins(1.0 - e.t, raised(a.m, params.settings[0].y) * a.minus_ln_rest);
}

fn gradient(e: Elements) -> vec4<f32> {
    let a = parts(e.x);
    let of_q = a.q + params.settings[0].x * zero_wins(a.p, a.minus_ln_p);
    let of_m = a.m / (a.q + params.settings[0].z) + params.settings[0].y * a.minus_ln_rest;
    let slope = select(a.p * a.q, vec4(0.0), a.m == vec4(0.0));
    return (1.0 - e.t) * slope * raised(a.m, params.settings[0].y - 1.0) * of_m
        - e.t * raised(a.q, params.settings[0].x) * of_q;
}";

impl Elementwise for Asymmetric {
    const NAME: &'static str = "asymmetric";
    const SHADER: Shader = Shader::new(HOOKS);
    const WEIGHTS: &'static [Role] = &[Role::Weight];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn check_options(&self) -> Result<()> {
        let Asymmetric { gamma_neg, gamma_pos, clip, .. } = *self;
        let is_right = gamma_neg >= 1.0 && gamma_pos >= 0.0 && clip > 0.0 && clip < 1.0;
        let expected = "gamma_neg of 1 or more, gamma_pos of 0 or more, clip in (0, 1)".into();
        let actual = format!("{gamma_neg}, {gamma_pos} and {clip}");
        if is_right { Ok(()) } else { Err(Error::Value { argument: "options", expected, actual }) }
    }

    fn settings(&self) -> Vec<f64> {
        let logit = (self.clip / (1.0 - self.clip)).ln();
        let high = f64::from(logit as f32);
        vec![self.gamma_pos, self.gamma_neg, self.clip, 1.0 - self.clip, high, logit - high]
    }

    fn numbers(&self) -> (Numbers, Numbers, Others) {
        (Numbers::Logits, Numbers::Probabilities, Others::Taken)
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let Asymmetric { gamma_neg, gamma_pos, clip, .. } = *self;
        // a factor of 0 annihilates an infinity, as everywhere in this crate
        let times = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * b };
        let (p, q) = (1.0 / (1.0 + (-x).exp()), 1.0 / (1.0 + x.exp()));
        let ln_p = x.min(0.0) - (-x.abs()).exp().ln_1p();
        let m = (p - clip).max(0.0);
        let (slope, ln_rest) = (if m > 0.0 { p * q } else { 0.0 }, (-m).ln_1p());
        let (positive, negative) = (times(t, q.powf(gamma_pos)), times(1.0 - t, m.powf(gamma_neg)));
        let of_power = (1.0 - t) * slope * gamma_neg * m.powf(gamma_neg - 1.0);
        Point::new(
            [-times(positive, ln_p), -times(negative, ln_rest)],
            [
                -positive * q,
                gamma_pos * times(positive * p, ln_p),
                negative * slope / (1.0 - m),
                -times(of_power, ln_rest),
            ],
        )
    }
}

/// Arguments with all that is delicate: logits that are right, wrong, and so by far; probabilities next to
/// the clip; hard and soft targets; weights that broadcast, of 0 and below among them; and, where losses
/// are not summed, what makes a sum infinite or NaN.
fn args(dtype: DType, reduction: Reduction) -> Result<Args<Array<'static>>> {
    let mut confident = vec![20.7, -20.7, 60.0, -60.0];
    if reduction == Reduction::None {
        confident.extend([1e4, -1e4, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    }
    let near_clip = (0..20).map(|i| -2.944_439 + (i - 10) as f32 * 1e-4);
    let ordinary = (0..997).map(|i| (i * 37 % 997) as f32 / 40.0 - 12.0);
    let x: Vec<f32> = confident.into_iter().chain(near_clip).chain(ordinary).collect();
    let t: Vec<f32> = (0..3 * x.len()).map(|i| [0.0, 1.0, 0.3][i / x.len()]).collect();
    let shape = [3, x.len()];
    Ok(Args::new(Array::from_vec(x.repeat(3), &shape)?.to_dtype(dtype)?)
        .target(Array::from_vec(t, &shape)?.to_dtype(dtype)?)
        .weight(Array::from_vec(vec![0.5, 1.0, -2.0], &[3, 1])?))
}

/// The worst error of a result in units of the error allowed: more than 1 is an error.
fn held(got: Option<&Array<'_>>, want: Option<&Values>, promise: Tolerance) -> anyhow::Result<f64> {
    let (Some(got), Some(want)) = (got, want) else { return Ok(0.0) };
    Ok(compare(&got.to_f32(), want, promise.stored_as(got.dtype()))?.units)
}

fn main() -> anyhow::Result<()> {
    let gpu = match Gpu::blocking() {
        Err(Error::NoAdapter { .. }) => None,
        gpu => Some(gpu?),
    };
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let op = Asymmetric { gamma_neg: 4.0, gamma_pos: 1.0, clip: 0.05, reduction };
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let args = args(dtype, reduction)?;
            let divisor = if reduction == Reduction::Mean {
                args.input().shape().iter().product::<usize>() as f64
            } else {
                1.0
            };
            for pass in [Pass::Forward, Pass::Backward, Pass::ForwardBackward] {
                let want = reference::run(&op, pass, &args)?;
                let hold = |got: &wgloss::Output<Array<'_>>| -> anyhow::Result<f64> {
                    let loss = Tolerance::LOSS.scaled(1.0 / divisor);
                    let grad = Tolerance::GRAD.scaled(1.0 / divisor);
                    let loss = held(got.get(Role::Loss), want.get(Role::Loss), loss)?;
                    Ok(loss.max(held(got.get(Role::Grad), want.get(Role::Grad), grad)?))
                };
                let on_cpu = hold(&Cpu::default().run(&op, pass, &args)?)?;
                let on_gpu = match &gpu {
                    Some(gpu) => hold(&gpu.block_on(gpu.run(&op, pass, &args))?)?,
                    None => f64::NAN,
                };
                println!(
                    "{:5} {dtype:5} {:17} {on_gpu:.2} (GPU) and {on_cpu:.2} (CPU) of the error allowed",
                    reduction.name(),
                    pass.name(),
                );
            }
        }
    }
    Ok(())
}
