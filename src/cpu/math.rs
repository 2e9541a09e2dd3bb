//! Elementary functions in f32, written to be vectorised.
//!
//! The mathematics is that of `shaders/shared/math.wgsl`, except that `log1p_unit` is a
//! polynomial, because a division costs more than that. Everything is branch-free: both sides of
//! a [`select`] are computed, so that loops over these functions become vector code, as wide as
//! [`vectorized`] allows. For NaN a function may return anything, because callers put NaN into
//! results themselves. The tests below hold every function to the ULPs that it states.
//!
//! The coefficients of polynomials are fitted for the least greatest error over the reduced range,
//! unless another source is named. The number behind each is the term of Taylor's series that it is
//! near.

use fearless_simd::{Level, Simd};

/// How many numbers are worked on together: one AVX-512 register, two of AVX2.
pub(super) const LANES: usize = 16;

/// An f32 a lane.
pub(super) type Lanes = [f32; LANES];

/// The lowest finite f32. It is the neutral element of max here, because it stays finite in
/// differences.
pub(super) const LOWEST: f32 = f32::MIN;

/// Computes an expression with the widest vectors that this machine has. What it calls must be
/// inlined into it, all the way down.
///
/// Without fused multiply-add (x86 before 2013) the same is computed, but slowly.
macro_rules! vectorized {
    ($expression:expr) => {
        $crate::cpu::math::with_widest_vectors(
            #[inline(always)]
            || $expression,
        )
    };
}
pub(super) use vectorized;

/// See [`vectorized`].
#[inline(always)]
pub(super) fn with_widest_vectors<R>(function: impl FnOnce() -> R) -> R {
    match Level::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx512(simd) => simd.vectorize(function),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx2(simd) => simd.vectorize(function),
        _ => function(),
    }
}

/// One number or the other, without a branch.
#[inline(always)]
pub(crate) fn select(condition: bool, yes: f32, no: f32) -> f32 {
    if condition { yes } else { no }
}

/// The larger one; the second, where one is NaN. The standard library's would take instructions
/// to find out which is.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    select(a > b, a, b)
}

/// The smaller one; the second, where one is NaN.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32) -> f32 {
    select(a < b, a, b)
}

/// `factor * value`, where a factor of exactly 0 gives 0 whatever the value is: an infinity, or
/// NaN.
#[inline(always)]
pub(crate) fn zero_wins(factor: f32, value: f32) -> f32 {
    select(factor == 0.0, 0.0, factor * value)
}

/// The same, except that a value of NaN gives NaN.
#[inline(always)]
pub(super) fn zero_wins_unless_nan(factor: f32, value: f32) -> f32 {
    select((factor == 0.0) & !value.is_nan(), 0.0, factor * value)
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: Lanes) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// The largest of the lanes, none of which is NaN.
#[inline(always)]
pub(super) fn max_lanes(mut lanes: Lanes) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// The bits that any of the lanes has.
#[inline(always)]
pub(super) fn or_lanes(mut lanes: [u32; LANES]) -> u32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] |= lanes[lane + half];
        }
    }
    lanes[0]
}

/// Added to a small number, this leaves its nearest integer in the last bits.
const TO_INTEGER: f32 = 12_582_912.0; // 1.5 * 2^23

/// The bits of a number times 2^n, where neither is subnormal; n in the last bits of `n`.
#[inline(always)]
fn times_power_of_two(number: f32, n: u32) -> f32 {
    f32::from_bits(number.to_bits().wrapping_add(n << 23))
}

const LN_2_HIGH: f32 = 0.693_359_4; // nine bits, so that its product with n is exact
const LN_2_LOW: f32 = 2.121_944_4e-4; // ln 2 = LN_2_HIGH - LN_2_LOW

const EXP_2: f32 = 5.000_000_4e-1; // 1/2!
const EXP_3: f32 = 1.666_636_3e-1; // 1/3!
const EXP_4: f32 = 4.166_476e-2; // 1/4!
const EXP_5: f32 = 8.379_203e-3; // 1/5!
const EXP_6: f32 = 1.406_196_8e-3; // 1/6!

/// e^r and, in the last bits of the other number, n, of `x = n ln 2 + r` (Cody and Waite's
/// reduction).
#[inline(always)]
fn exp_parts(x: f32) -> (f32, u32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, TO_INTEGER);
    let n = shifted - TO_INTEGER;
    let r = n.mul_add(-LN_2_HIGH, x);
    let r = n.mul_add(LN_2_LOW, r);
    let p = r.mul_add(EXP_6, EXP_5);
    let p = r.mul_add(p, EXP_4);
    let p = r.mul_add(p, EXP_3);
    let p = r.mul_add(p, EXP_2);
    let p = r.mul_add(p, 1.0);
    (r.mul_add(p, 1.0), shifted.to_bits())
}

/// e^x for x <= 0, -inf included: 1.5 ULP; 0 below -87.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    let (p, n) = exp_parts(x);
    select(x < -87.0, 0.0, times_power_of_two(p, n))
}

/// e^x: 1.5 ULP; 0 below -87, infinite where it is beyond f32.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (p, n) = exp_parts(max(min(x, 89.0), -88.0));
    // in two factors, because 2^128 is infinite where e^x may not be yet
    let n = n.wrapping_sub(TO_INTEGER.to_bits()).cast_signed();
    let half = n >> 1;
    let value = times_power_of_two(p, half.cast_unsigned());
    let value = value * times_power_of_two(1.0, (n - half).cast_unsigned());
    let value = select(x < -87.0, 0.0, value);
    select(x > 88.722_83, f32::INFINITY, value)
}

/// Of `ln f = 2 atanh(s)`, `s = (f - 1) / (f + 1)`, as `2 s + s z p(z)` with `z = s^2`.
const ATANH_1: f32 = 0.666_667_8; // 2/3
const ATANH_2: f32 = 0.399_775_24; // 2/5
const ATANH_3: f32 = 0.298_724_07; // 2/7

/// ln f and n of `x = f 2^n`, with f from sqrt(1/2) to sqrt(2). So near 1, where ln x is small, n
/// is 0, and nothing is added to the series of ln f.
#[inline(always)]
fn ln_parts(x: f32) -> (f32, f32) {
    let is_subnormal = x < f32::MIN_POSITIVE;
    let normal = select(is_subnormal, x * 8_388_608.0, x); // 2^23
    let bits = normal.to_bits().cast_signed();
    let n = bits.wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits().cast_signed()) >> 23;
    let f = f32::from_bits(bits.wrapping_sub(n << 23).cast_unsigned());
    let s = (f - 1.0) / (f + 1.0);
    let z = s * s;
    let p = z.mul_add(ATANH_3, ATANH_2);
    let p = z.mul_add(p, ATANH_1);
    ((s * z).mul_add(p, s + s), n as f32 - select(is_subnormal, 23.0, 0.0))
}

/// ln x: 2 ULP; -inf at 0, NaN below.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let (ln_f, n) = ln_parts(x);
    let value = n.mul_add(LN_2_HIGH, n.mul_add(-LN_2_LOW, ln_f));
    let value = select(x == f32::INFINITY, x, value);
    let value = select(x == 0.0, f32::NEG_INFINITY, value);
    select(x < 0.0, f32::NAN, value)
}

/// x^y for x > 0: 6 ULP for y from 0 to 5.
///
/// The whole part of y log2 x becomes an exponent, so only the remainder is rounded; e^(y ln x)
/// would be off by the rounding of all of y ln x.
#[inline(always)]
pub(crate) fn power(x: f32, y: f32) -> f32 {
    let (ln_f, n) = ln_parts(x);
    let exponent = y * ln_f.mul_add(std::f32::consts::LOG2_E, n);
    let shifted = max(min(exponent, 252.0), -252.0) + TO_INTEGER;
    let whole = shifted - TO_INTEGER;
    let remainder = y.mul_add(n, -whole).mul_add(std::f32::consts::LN_2, y * ln_f);
    let n = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()).cast_signed();
    let half = n >> 1;
    let [first, second] = [half, n - half].map(|n| times_power_of_two(1.0, n.cast_unsigned()));
    exp(remainder) * first * second
}

/// Of `ln(1 + u)` as `u + u^2 p(u)`, where p interpolates at the zeros of a Chebyshev polynomial.
const LOG1P: [f32; 9] = [
    -4.999_999_7e-1, // -1/2
    3.333_284_2e-1,  // 1/3
    -2.498_652_6e-1, // -1/4
    1.985_410_6e-1,  // 1/5
    -1.584_756_6e-1, // -1/6
    1.156_184_5e-1,
    -6.675_772e-2,
    2.522_405_4e-2,
    -4.466_211_6e-3,
];

/// ln(1 + u) for u from 0 to 1: 1.5 ULP.
#[inline(always)]
pub(crate) fn log1p_unit(u: f32) -> f32 {
    let p = u.mul_add(LOG1P[8], LOG1P[7]);
    let p = u.mul_add(p, LOG1P[6]);
    let p = u.mul_add(p, LOG1P[5]);
    let p = u.mul_add(p, LOG1P[4]);
    let p = u.mul_add(p, LOG1P[3]);
    let p = u.mul_add(p, LOG1P[2]);
    let p = u.mul_add(p, LOG1P[1]);
    let p = u.mul_add(p, LOG1P[0]);
    (u * u).mul_add(p, u)
}

/// ln(1 + u) for any u >= 0: 2 ULP.
#[inline(always)]
pub(super) fn log1p(u: f32) -> f32 {
    select(u > 1.0, ln(u + 1.0), log1p_unit(min(u, 1.0)))
}

/// What losses of a logit are made of.
pub(crate) struct Logistic {
    /// ln(1 + e^-|x|).
    pub log1p_exp: f32,
    /// 1 / (1 + e^-x), with all of its digits however small it is.
    pub sigmoid: f32,
    /// 1 / (1 + e^x), likewise.
    pub complement: f32,
}

/// 3 ULP each.
#[inline(always)]
pub(crate) fn logistic(x: f32) -> Logistic {
    let e = exp_nonpositive(-x.abs());
    let larger = 1.0 / (e + 1.0);
    let smaller = e * larger;
    Logistic {
        log1p_exp: log1p_unit(e),
        sigmoid: select(x >= 0.0, larger, smaller),
        complement: select(x >= 0.0, smaller, larger),
    }
}

/// 1, -1, or 0 at 0.
#[inline(always)]
pub(crate) fn sign(x: f32) -> f32 {
    select(x > 0.0, 1.0, select(x < 0.0, -1.0, x))
}

/// Of tanh x as `x + x z p(z)` with `z = x^2`: the coefficients of Cephes' tanhf.
const TANH_1: f32 = -3.333_328e-1; // -1/3
const TANH_2: f32 = 1.333_144_2e-1; // 2/15
const TANH_3: f32 = -5.373_971_6e-2; // -17/315
const TANH_4: f32 = 2.063_909e-2; // 62/2835
const TANH_5: f32 = -5.704_988_7e-3; // -1382/155925

/// tanh x: 2 ULP. Below 5/8, where the quotient cancels, it is the polynomial.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = z.mul_add(TANH_5, TANH_4);
    let p = z.mul_add(p, TANH_3);
    let p = z.mul_add(p, TANH_2);
    let p = z.mul_add(p, TANH_1);
    let e = exp_nonpositive(-2.0 * x.abs());
    let quotient = sign(x) * ((1.0 - e) / (1.0 + e));
    select(x.abs() < 0.625, (x * z).mul_add(p, x), quotient)
}

/// Its derivative: 5 ULP. It is computed as the square of the hyperbolic secant, because 1 - tanh^2
/// cancels.
#[inline(always)]
pub(super) fn tanh_slope(x: f32) -> f32 {
    let e = exp_nonpositive(-2.0 * x.abs());
    let inverse = 1.0 / (1.0 + e);
    4.0 * e * inverse * inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many numbers of each range.
    const COUNT: usize = 1 << 20;

    /// Numbers from one to another of the same sign, evenly among all that f32 has.
    fn numbers(from: f32, to: f32) -> Vec<f32> {
        let (first, last) = (from.to_bits(), to.to_bits());
        let distance = u64::from(first.abs_diff(last));
        let at = |i: usize| {
            let step = (distance * i as u64 / (COUNT - 1) as u64) as u32;
            f32::from_bits(if first < last { first + step } else { first - step })
        };
        (0..COUNT).map(at).collect()
    }

    /// The distance of two numbers in units in the last place of the exact one.
    fn ulps(got: f32, want: f64) -> f64 {
        let exponent = want.abs().max(f32::MIN_POSITIVE.into()).log2().floor() as i32;
        (f64::from(got) - want).abs() / 2_f64.powi(exponent - 23)
    }

    /// Holds a function to ULPs over a range.
    #[track_caller]
    fn hold(
        most: f64,
        [from, to]: [f32; 2],
        function: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
    ) {
        let (mut worst, mut at) = (0.0, 0.0);
        for x in numbers(from, to) {
            let ulps = ulps(vectorized!(function(x)), exact(x.into()));
            if ulps > worst || ulps.is_nan() {
                (worst, at) = (ulps, x);
            }
        }
        println!("from {from} to {to}: {worst:.2} ULP at {at:e}");
        assert!(worst <= most, "{worst} ULP at {at:e}");
    }

    #[test]
    fn exponentials() {
        hold(1.5, [-1e-30, -87.0], exp_nonpositive, f64::exp);
        hold(1.5, [-1e-30, -87.0], exp, f64::exp);
        hold(1.5, [1e-30, 88.7228], exp, f64::exp);
        let ends = [0.0, -0.0, -88.0, -1e4, f32::MIN, f32::NEG_INFINITY];
        for (x, want) in ends.into_iter().zip([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) {
            assert_eq!([exp(x), exp_nonpositive(x)], [want; 2], "{x}");
        }
        assert_eq!([exp(88.73), exp(f32::INFINITY)], [f32::INFINITY; 2]);
    }

    #[test]
    fn logarithms() {
        hold(2.0, [1e-45, f32::MAX], ln, f64::ln);
        hold(2.0, [0.5, 2.0], ln, f64::ln);
        hold(1.5, [1e-38, 1.0], log1p_unit, f64::ln_1p);
        hold(2.0, [1e-38, f32::MAX], log1p, f64::ln_1p);
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (x, want) in [(0.0, -inf), (-0.0, -inf), (1.0, 0.0), (inf, inf), (-1.0, nan)] {
            assert_eq!(ln(x).to_bits(), want.to_bits(), "{x}");
        }
        assert_eq!(log1p(0.0), 0.0);
    }

    #[test]
    fn powers() {
        for (y, least) in [(0.25, 1e-37), (1.0, 1e-37), (2.0, 1e-18), (2.7, 1e-13), (5.0, 1e-7)] {
            hold(6.0, [least, 2.0], |x| power(x, y), |x| x.powf(y.into()));
        }
        hold(6.0, [1e-37, 2.0], |x| power(x, -0.5), |x| x.powf(-0.5));
        assert_eq!([power(1e-30, 40.0), power(1e30, 40.0)], [0.0, f32::INFINITY]);
    }

    #[test]
    fn of_logits() {
        for range in [[1e-30, 87.0], [-1e-30, -87.0]] {
            hold(3.0, range, |x| logistic(x).sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
            hold(3.0, range, |x| logistic(x).complement, |x| 1.0 / (1.0 + x.exp()));
            hold(3.0, range, |x| logistic(x).log1p_exp, |x| (-x.abs()).exp().ln_1p());
        }
        let Logistic { log1p_exp, sigmoid, complement } = logistic(f32::NEG_INFINITY);
        assert_eq!([log1p_exp, sigmoid, complement], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn hyperbolic_tangents() {
        for [from, to] in [[1e-18, 100.0], [-1e-18, -100.0]] {
            hold(2.0, [from, to], tanh, f64::tanh);
        }
        for [from, to] in [[1e-18, 43.0], [-1e-18, -43.0]] {
            hold(5.0, [from, to], tanh_slope, |x| x.cosh().powi(-2));
        }
    }

    #[test]
    fn signs_and_products() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (x, want) in [(2.0, 1.0), (-1e-40, -1.0), (0.0, 0.0), (inf, 1.0), (-inf, -1.0)] {
            assert_eq!(sign(x), want);
        }
        for (factor, value, want) in [(0.0, inf, 0.0), (-0.0, 3.0, 0.0), (2.0, -inf, -inf)] {
            assert_eq!(zero_wins_unless_nan(factor, value), want);
            assert_eq!(zero_wins(factor, value), want);
        }
        assert_eq!(zero_wins(0.0, nan), 0.0);
        for (factor, value) in [(0.0, nan), (nan, 0.0), (nan, nan), (inf, 0.0)] {
            assert!(zero_wins_unless_nan(factor, value).is_nan());
        }
        let counted = std::array::from_fn(|lane| lane as f32);
        assert_eq!([sum_lanes(counted), max_lanes(counted)], [120.0, 15.0]);
        assert_eq!(or_lanes(counted.map(|number| number as u32 & 5)), 5);
    }
}
