//! Elementary functions, for sixteen numbers at once.
//!
//! The mathematics is that of `shaders/shared/math.wgsl`, but for `log1p_unit`, a polynomial here,
//! since a division costs more than it does. All is branch-free, and a NaN may come out as anything:
//! callers deal with NaN apart. The tests below hold every function to the ULPs that it states.

use fearless_simd::{
    Bytes, ExtractToken, Select, Simd, SimdBase, SimdFloat, SimdInt, SimdInto, f32x16, i32x16,
    mask32x16, u32x16,
};

/// How many numbers are worked on together: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// As many numbers in memory.
pub(crate) type Lanes = [f32; LANES];

/// As many numbers at work.
pub(crate) type Vector<S> = f32x16<S>;

/// A truth value for each.
pub(crate) type Mask<S> = mask32x16<S>;

/// The lowest finite f32: a neutral element for max that stays finite in differences.
pub(crate) const LOWEST: f32 = f32::MIN;

/// One vector or number where the mask is set, the other one elsewhere.
#[inline(always)]
pub(crate) fn select<S: Simd>(
    mask: Mask<S>,
    yes: impl SimdInto<Vector<S>, S>,
    no: impl SimdInto<Vector<S>, S>,
) -> Vector<S> {
    let simd = mask.token();
    mask.select(yes.simd_into(simd), no.simd_into(simd))
}

/// `factor * value`, where a factor of exactly 0 annihilates an infinity too, but no NaN.
#[inline(always)]
pub(crate) fn times<S: Simd>(factor: Vector<S>, value: Vector<S>) -> Vector<S> {
    let annihilates = factor.simd_eq(0.0) & value.simd_eq(value);
    select(annihilates, 0.0, factor * value)
}

/// The sum of the lanes, as a tree.
#[inline(always)]
pub(crate) fn sum_lanes<S: Simd>(v: Vector<S>) -> f32 {
    let mut v: Lanes = v.into();
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            v[lane] += v[lane + half];
        }
    }
    v[0]
}

/// Added to a small number, leaves its nearest integer in the last bits.
const TO_INTEGER: f32 = 12_582_912.0; // 1.5 * 2^23

/// `x = n ln 2 + r`: e^r, and n in the last bits of the other one.
/// Cody-Waite reduction and a polynomial of degree 6 (coefficients of Cephes' expf).
#[inline(always)]
fn exp_parts<S: Simd>(x: Vector<S>) -> (Vector<S>, u32x16<S>) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, TO_INTEGER);
    let n = shifted - TO_INTEGER;
    let r = n.mul_add(-0.693_359_4, x); // nine bits of ln 2, so that the product is exact
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_199_9e-3);
    let p = r.mul_add(p, 8.333_452e-3);
    let p = r.mul_add(p, 4.166_579_6e-2);
    let p = r.mul_add(p, 1.666_666_5e-1);
    let p = r.mul_add(p, 5e-1);
    ((r * r).mul_add(p, r) + 1.0, shifted.bitcast())
}

/// e^x for x <= 0, -inf included: 2 ULP; 0 below -87.
#[inline(always)]
pub(crate) fn exp_nonpositive<S: Simd>(x: Vector<S>) -> Vector<S> {
    let (p, n) = exp_parts(x);
    let bits = p.bitcast::<u32x16<S>>() + (n << 23);
    select(x.simd_lt(-87.0), 0.0, bits.bitcast::<Vector<S>>())
}

/// e^x: 2 ULP; 0 below -87, infinite where f32 ends.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: Vector<S>) -> Vector<S> {
    let (p, n) = exp_parts(x.max(-88.0).min(89.0));
    let n = n.bitcast::<i32x16<S>>() - TO_INTEGER.to_bits().cast_signed();
    // in two factors, since 2^128 is infinite though e^x may not be yet
    let half = n >> 1;
    let power_of_two = |n: i32x16<S>| ((n + 127) << 23).bitcast::<Vector<S>>();
    let value = (p * power_of_two(half)) * power_of_two(n - half);
    let value = select(x.simd_lt(-87.0), 0.0, value);
    select(x.simd_gt(88.722_83), f32::INFINITY, value)
}

/// ln x: 2 ULP; -inf at 0, NaN below.
///
/// `x = f 2^n` with f from sqrt(1/2) to sqrt(2), so that near 1, where ln x is small, nothing is
/// added to the series of `2 atanh((f - 1) / (f + 1))`.
#[inline(always)]
pub(crate) fn ln<S: Simd>(x: Vector<S>) -> Vector<S> {
    let is_subnormal = x.simd_lt(f32::MIN_POSITIVE);
    let normal = select(is_subnormal, x * 8_388_608.0, x); // 2^23
    let bits = normal.bitcast::<i32x16<S>>();
    let n = (bits - std::f32::consts::FRAC_1_SQRT_2.to_bits().cast_signed()) >> 23;
    let f = (bits - (n << 23)).bitcast::<Vector<S>>();
    let s = (f - 1.0) / (f + 1.0);
    let z = s * s;
    let p = z.mul_add(0.181_818_18, 0.222_222_22);
    let p = z.mul_add(p, 0.285_714_3);
    let p = z.mul_add(p, 0.4);
    let p = z.mul_add(p, 0.666_666_7);
    let series = (s * z).mul_add(p, s + s);
    let n = n.to_float::<Vector<S>>() - select(is_subnormal, 23.0, 0.0);
    let value = n.mul_add(0.693_359_4, n.mul_add(-2.121_944_4e-4, series));
    let value = select(x.simd_eq(f32::INFINITY), x, value);
    let value = select(x.simd_eq(0.0), f32::NEG_INFINITY, value);
    select(x.simd_lt(0.0), f32::NAN, value)
}

/// ln(1 + u) for u from 0 to 1: 2 ULP.
/// `u + u^2 p(u)`: the coefficients interpolate at the nodes of a Chebyshev polynomial.
#[inline(always)]
pub(crate) fn log1p_unit<S: Simd>(u: Vector<S>) -> Vector<S> {
    let p = u.mul_add(-4.466_211_6e-3, 2.522_405_4e-2);
    let p = u.mul_add(p, -6.675_772e-2);
    let p = u.mul_add(p, 1.156_184_5e-1);
    let p = u.mul_add(p, -1.584_756_6e-1);
    let p = u.mul_add(p, 1.985_410_6e-1);
    let p = u.mul_add(p, -2.498_652_6e-1);
    let p = u.mul_add(p, 3.333_284_2e-1);
    let p = u.mul_add(p, -4.999_999_7e-1);
    (u * u).mul_add(p, u)
}

/// ln(1 + u) for any u >= 0: 2 ULP.
#[inline(always)]
pub(crate) fn log1p<S: Simd>(u: Vector<S>) -> Vector<S> {
    select(u.simd_gt(1.0), ln(u + 1.0), log1p_unit(u.min(1.0)))
}

/// All that comes of a logit.
pub(crate) struct Logistic<S: Simd> {
    /// ln(1 + e^-|x|).
    pub log1p_exp: Vector<S>,
    /// 1 / (1 + e^-x), to its last digit however small.
    pub sigmoid: Vector<S>,
    /// 1 / (1 + e^x), likewise.
    pub complement: Vector<S>,
}

/// 4 ULP each.
#[inline(always)]
pub(crate) fn logistic<S: Simd>(x: Vector<S>) -> Logistic<S> {
    let e = exp_nonpositive(-x.abs());
    let larger = Vector::splat(x.token(), 1.0) / (e + 1.0);
    let smaller = e * larger;
    let is_positive = x.simd_ge(0.0);
    Logistic {
        log1p_exp: log1p_unit(e),
        sigmoid: select(is_positive, larger, smaller),
        complement: select(is_positive, smaller, larger),
    }
}

/// 1, -1, or 0 at 0.
#[inline(always)]
pub(crate) fn sign<S: Simd>(x: Vector<S>) -> Vector<S> {
    select(x.simd_gt(0.0), 1.0, select(x.simd_lt(0.0), -1.0, x))
}

/// tanh x: 3 ULP. Below 5/8, where the quotient cancels, a polynomial (coefficients of Cephes'
/// tanhf).
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: Vector<S>) -> Vector<S> {
    let z = x * x;
    let p = z.mul_add(-5.704_988_7e-3, 2.063_909e-2);
    let p = z.mul_add(p, -5.373_971_6e-2);
    let p = z.mul_add(p, 1.333_144_2e-1);
    let p = z.mul_add(p, -3.333_328e-1);
    let e = exp_nonpositive(x.abs() * -2.0);
    let quotient = sign(x) * ((-e + 1.0) / (e + 1.0));
    select(x.abs().simd_lt(0.625), (x * z).mul_add(p, x), quotient)
}

/// Its derivative, as the square of the hyperbolic secant, since 1 - tanh^2 cancels: 6 ULP.
#[inline(always)]
pub(crate) fn tanh_slope<S: Simd>(x: Vector<S>) -> Vector<S> {
    let e = exp_nonpositive(x.abs() * -2.0);
    let inverse = Vector::splat(x.token(), 1.0) / (e + 1.0);
    e * 4.0 * inverse * inverse
}

#[cfg(test)]
mod tests {
    use fearless_simd::{Level, dispatch};

    use super::*;

    /// So many numbers of each range.
    const COUNT: u32 = 1 << 19;

    /// Numbers from one to another of the same sign, evenly among all that f32 has.
    fn numbers(from: f32, to: f32) -> impl Iterator<Item = Lanes> {
        let (first, last) = (from.to_bits(), to.to_bits());
        let distance = u64::from(first.abs_diff(last));
        let at = move |i: u32| {
            let step = (distance * u64::from(i) / u64::from(COUNT - 1)) as u32;
            f32::from_bits(if first < last { first + step } else { first - step })
        };
        (0..COUNT / LANES as u32)
            .map(move |i| std::array::from_fn(|lane| at(i * LANES as u32 + lane as u32)))
    }

    /// The distance of two numbers in units in the last place of the exact one.
    fn ulps(got: f32, want: f64) -> f64 {
        let exponent = want.abs().max(f32::MIN_POSITIVE.into()).log2().floor() as i32;
        (f64::from(got) - want).abs() / 2_f64.powi(exponent - 23)
    }

    /// Holds a function to ULPs over a range, on the widest vectors that there are, and on those
    /// that every machine has.
    macro_rules! hold {
        ($ulps:expr, $from:expr, $to:expr, $function:expr, $exact:expr) => {
            for level in [Level::new(), Level::baseline()] {
                let (mut worst, mut at) = (0.0, 0.0);
                for x in numbers($from, $to) {
                    let got: Lanes = dispatch!(level, simd => {
                        $function(Vector::load_array(simd, x)).into()
                    });
                    for (x, got) in x.into_iter().zip(got) {
                        let ulps = ulps(got, $exact(f64::from(x)));
                        // NaN too
                        if ulps.is_nan() || ulps > worst {
                            (worst, at) = (ulps, x);
                        }
                    }
                }
                println!("{} from {} to {}: {worst:.2} at {at:e}", stringify!($function), $from, $to);
                assert!(worst <= $ulps, "{worst} at {at:e}");
            }
        };
    }

    #[test]
    fn exponentials() {
        hold!(1.5, -1e-30, -87.0, exp_nonpositive, f64::exp);
        hold!(1.5, -1e-30, -87.0, exp, f64::exp);
        hold!(1.5, 1e-30, 88.7228, exp, f64::exp);
        let ends = [0.0, -0.0, -88.0, -1e4, f32::MIN, f32::NEG_INFINITY];
        for (x, want) in ends.into_iter().zip([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) {
            dispatch!(Level::new(), simd => {
                let x = Vector::splat(simd, x);
                assert_eq!([exp(x)[0], exp_nonpositive(x)[0]], [want; 2]);
            });
        }
        dispatch!(Level::new(), simd => {
            assert_eq!(exp(Vector::splat(simd, 88.73))[3], f32::INFINITY);
            assert_eq!(exp(Vector::splat(simd, f32::INFINITY))[3], f32::INFINITY);
        });
    }

    #[test]
    fn logarithms() {
        hold!(1.5, 1e-45, f32::MAX, ln, f64::ln);
        hold!(1.5, 0.5, 2.0, ln, f64::ln);
        hold!(1.5, 1e-38, 1.0, log1p_unit, f64::ln_1p);
        hold!(1.5, 1e-38, f32::MAX, log1p, f64::ln_1p);
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (x, want) in [(0.0, -inf), (-0.0, -inf), (1.0, 0.0), (inf, inf), (-1.0, nan)] {
            let got = dispatch!(Level::new(), simd => ln(Vector::splat(simd, x))[15]);
            assert_eq!(got.to_bits(), want.to_bits(), "ln {x}: {got}");
        }
        dispatch!(Level::new(), simd => assert_eq!(log1p(Vector::splat(simd, 0.0))[0], 0.0));
    }

    #[test]
    fn of_logits() {
        fn sigmoid<S: Simd>(x: Vector<S>) -> Vector<S> {
            logistic(x).sigmoid
        }
        fn complement<S: Simd>(x: Vector<S>) -> Vector<S> {
            logistic(x).complement
        }
        fn log1p_exp<S: Simd>(x: Vector<S>) -> Vector<S> {
            logistic(x).log1p_exp
        }
        for [from, to] in [[1e-30, 87.0], [-1e-30, -87.0]] {
            hold!(3.0, from, to, sigmoid, |x: f64| 1.0 / (1.0 + (-x).exp()));
            hold!(3.0, from, to, complement, |x: f64| 1.0 / (1.0 + x.exp()));
            hold!(3.0, from, to, log1p_exp, |x: f64| (-x.abs()).exp().ln_1p());
        }
        dispatch!(Level::new(), simd => {
            let Logistic { log1p_exp, sigmoid, complement } =
                logistic(Vector::splat(simd, f32::NEG_INFINITY));
            assert_eq!([log1p_exp[0], sigmoid[0], complement[0]], [0.0, 0.0, 1.0]);
        });
    }

    #[test]
    fn hyperbolic_tangents() {
        for [from, to] in [[1e-18, 100.0], [-1e-18, -100.0]] {
            hold!(2.0, from, to, tanh, f64::tanh);
        }
        for [from, to] in [[1e-18, 43.0], [-1e-18, -43.0]] {
            hold!(5.0, from, to, tanh_slope, |x: f64| x.cosh().powi(-2));
        }
    }

    #[test]
    fn signs_and_annihilating_products() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        dispatch!(Level::new(), simd => {
            let vector = |x: f32| Vector::splat(simd, x);
            for (x, want) in [(2.0, 1.0), (-1e-40, -1.0), (0.0, 0.0), (inf, 1.0), (-inf, -1.0)] {
                assert_eq!(sign(vector(x))[0], want);
            }
            for (factor, value, want) in [(0.0, inf, 0.0), (-0.0, 3.0, 0.0), (2.0, -inf, -inf)] {
                assert_eq!(times(vector(factor), vector(value))[0], want);
            }
            for (factor, value) in [(0.0, nan), (nan, 0.0), (nan, nan), (inf, 0.0)] {
                assert!(times(vector(factor), vector(value))[0].is_nan());
            }
            let counted = Vector::from_fn(simd, |lane| lane as f32);
            assert_eq!(sum_lanes(counted), 120.0);
        });
    }
}
