//! A loss as callers make their own.

use wgloss::custom::{Elementwise, Point, Shader};
use wgloss::{Reduction, Role};

/// `sum over k of settings[k] d^k`, with all eight settings, of `d = x - t`.
#[derive(Debug, Clone)]
pub struct Polynomial {
    pub coefficients: Vec<f64>,
    pub reduction: Reduction,
}

impl Polynomial {
    pub fn new(reduction: Reduction) -> Self {
        let coefficients = vec![0.5, -1.0, 2.0, 0.25, -0.125, 3.0, 0.0625, -0.75];
        Polynomial { coefficients, reduction }
    }
}

impl Elementwise for Polynomial {
    const NAME: &'static str = "polynomial";
    const SHADER: Shader = Shader::new(
        "
        fn loss(e: Elements) -> vec4<f32> {
            let d = e.x - e.t;
            var sum = vec4(0.0);
            for (var k = 8u; k > 0u; k -= 1u) {
                sum = fma(sum, d, vec4(params.settings[(k - 1u) / 4u][(k - 1u) % 4u]));
            }
            return sum;
        }

        fn gradient(e: Elements) -> vec4<f32> {
            let d = e.x - e.t;
            var sum = vec4(0.0);
            for (var k = 7u; k > 0u; k -= 1u) {
                sum = fma(sum, d, vec4(f32(k) * params.settings[k / 4u][k % 4u]));
            }
            return sum;
        }",
    );
    const OF_DIFFERENCE: bool = true;
    const WEIGHTS: &'static [Role] = &[Role::Weight];

    fn reduction(&self) -> Reduction {
        self.reduction
    }

    fn settings(&self) -> Vec<f64> {
        self.coefficients.clone()
    }

    fn reference(&self, x: f64, t: f64, _pos_weight: f64) -> Point {
        let d = x - t;
        let of = |k: usize| self.coefficients[k] * d.powi(k as i32);
        let slope = |k: usize| k as f64 * self.coefficients[k] * d.powi(k as i32 - 1);
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        Point::new(all.map(of), all.map(|k| if k == 0 { 0.0 } else { slope(k) }))
    }
}
