// Elementary functions of known accuracy, and tests for NaN and infinities that every driver keeps.
//
// WGSL lets its own exp be off by 3 + 2|x| ULP, and its log by 2^-21 near 1, which is all of the
// result for log1p of a small number. Measured against float64 on lavapipe and SwiftShader,
// exp_nonpositive is off by at most 3 ULP, and log1p by 2.
//
// The coefficients of polynomials are fitted for the least greatest error over the reduced range,
// unless another source is named. The number behind each is the term of Taylor's series that it
// is near.

// The lowest finite f32. It is the neutral element of max here, because it stays finite in
// differences.
const LOWEST: f32 = -3.4028234663852886e38;
// The smallest normal f32.
const SMALLEST: f32 = 1.1754943508222875e-38;

// Both go through a variable, because WGSL allows no constant expression to be infinite or NaN.
fn positive_infinity() -> f32 {
    var bits = 0x7f800000u;
    return bitcast<f32>(bits);
}

fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

// Looks at bits, because drivers may assume that NaN does not occur, and fold `x != x` to false.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_nan4(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

fn is_negative_infinity4(x: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(x) == vec4(0xff800000u);
}

fn is_infinity4(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) == vec4(0x7f800000u);
}

fn is_same_infinity4(x: vec4<f32>, y: vec4<f32>) -> vec4<bool> {
    let bits = bitcast<vec4<u32>>(x);
    return (bits == bitcast<vec4<u32>>(y)) & ((bits & vec4(0x7fffffffu)) == vec4(0x7f800000u));
}

// Finds +inf, and NaN of either sign, among many numbers. It does so in integer arithmetic: as
// integers they are the largest of their sign.
struct Extremes {
    signed: vec4<i32>,
    unsigned: vec4<u32>,
}

fn no_extremes() -> Extremes {
    return Extremes(vec4(0), vec4(0u));
}

fn with_extremes(so_far: Extremes, x: vec4<f32>) -> Extremes {
    return Extremes(
        max(so_far.signed, bitcast<vec4<i32>>(x)), max(so_far.unsigned, bitcast<vec4<u32>>(x)));
}

fn has_nan_or_positive_infinity(e: Extremes) -> bool {
    return any(e.signed >= vec4(0x7f800000)) || any(e.unsigned > vec4(0xff800000u));
}

// e^y as p * 2^n, for y from -88 to 89. p is exactly 1 at 0.
//
// The reduction is Cody and Waite's: y = n ln 2 + r, with ln 2 = LN_2_HIGH - LN_2_LOW. LN_2_HIGH
// has nine bits, so that its product with n is exact. For the product of LN_2_LOW, n is (y - r) /
// ln 2: so a multiple of y is added instead of one of n. That leaves 1.00030613 r, and the
// coefficients are divided by the powers of that factor.
struct Exp {
    p: vec4<f32>,
    // n + 127 in the lowest bits
    n: vec4<i32>,
}

// Added to a small number, this leaves its nearest integer plus 127 in the lowest bits.
const TO_EXPONENT: f32 = 12583039.0; // 1.5 * 2^23 + 127
const LOG2_E: f32 = 1.44269504;
const LN_2: f32 = 0.693147181;
const LN_2_HIGH: f32 = 0.693359375;
const LN_2_LOW: f32 = 2.12194440e-4;
const LN_2_LOW_LOG2_E: f32 = 3.06131867e-4;

const EXP_1: f32 = 9.99694012e-1; // 1
const EXP_2: f32 = 4.99694053e-1; // 1/2!
const EXP_3: f32 = 1.66510660e-1; // 1/3!
const EXP_4: f32 = 4.16137807e-2; // 1/4!
const EXP_5: f32 = 8.36638889e-3; // 1/5!
const EXP_6: f32 = 1.40361668e-3; // 1/6!

fn exp_parts(y: vec4<f32>) -> Exp {
    let n = bitcast<vec4<i32>>(fma(y, vec4(LOG2_E), vec4(TO_EXPONENT)));
    // taken off as an integer, because a compiler may cancel what was added as a float
    let whole = vec4<f32>(n - vec4(bitcast<i32>(TO_EXPONENT)));
    // Not `whole` times LN_2_LOW, because Mesa would join `whole a + whole b` to `whole (a + b)`,
    // and be off by 2^-24 |y|.
    let r = fma(y, vec4(LN_2_LOW_LOG2_E), fma(whole, vec4(-LN_2_HIGH), y));
    var p = fma(r, vec4(EXP_6), vec4(EXP_5));
    p = fma(r, p, vec4(EXP_4));
    p = fma(r, p, vec4(EXP_3));
    p = fma(r, p, vec4(EXP_2));
    p = fma(r, p, vec4(EXP_1));
    return Exp(fma(r, p, vec4(1.0)), n);
}

// 2^n for n from -126 to 127, and 0 for -127.
fn power_of_two(n: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((n + vec4(127)) << vec4(23u));
}

// e^x for x <= 0, -inf included; 0 below -87.7.
fn exp_nonpositive(x: vec4<f32>) -> vec4<f32> {
    let e = exp_parts(max(x, vec4(-88.0)));
    // the shift leaves only the exponent
    return e.p * bitcast<vec4<f32>>(e.n << vec4(23u));
}

// e^x; 0 below -87, infinite where it is beyond f32.
fn exp4(x: vec4<f32>) -> vec4<f32> {
    let e = exp_parts(clamp(x, vec4(-88.0), vec4(89.0)));
    // in two factors, because 2^128 is infinite where e^x may not be yet
    let n = e.n - vec4(bitcast<i32>(TO_EXPONENT));
    let half = n >> vec4(1u);
    let value = (e.p * power_of_two(half)) * power_of_two(n - half);
    let bounded = select(value, vec4(0.0), x < vec4(-87.0));
    return select(bounded, vec4(positive_infinity()), x > vec4(88.72283));
}

// Of ln f = 2 atanh(s), s = (f - 1) / (f + 1), as 2 s + s z p(z) with z = s^2.
const ATANH_1: f32 = 0.666667765; // 2/3
const ATANH_2: f32 = 0.399775238; // 2/5
const ATANH_3: f32 = 0.298724067; // 2/7

// x = f * 2^n with f in [sqrt(1/2), sqrt(2)). So near 1, where ln x is small, n is 0, and nothing
// is added to the series of ln f.
struct Log {
    ln_f: vec4<f32>,
    n: vec4<f32>,
}

fn ln_parts(x: vec4<f32>) -> Log {
    let given = bitcast<vec4<u32>>(x);
    // a subnormal is taken by its integer, because drivers may read it as 0
    let is_subnormal = given < vec4(0x00800000u);
    let bits = bitcast<vec4<i32>>(select(x, vec4<f32>(given), is_subnormal));
    let n = (bits - vec4(0x3f3504f3)) >> vec4(23u);
    let f = bitcast<vec4<f32>>(bits - (n << vec4(23u)));
    let s = (f - 1.0) / (f + 1.0);
    let z = s * s;
    var p = fma(z, vec4(ATANH_3), vec4(ATANH_2));
    p = fma(z, p, vec4(ATANH_1));
    let exponent = vec4<f32>(n) - select(vec4(0.0), vec4(149.0), is_subnormal);
    return Log(fma(s * z, p, s + s), exponent);
}

// ln x; -inf at 0, NaN below.
fn ln4(x: vec4<f32>) -> vec4<f32> {
    let given = bitcast<vec4<u32>>(x);
    let log = ln_parts(x);
    var value = fma(log.n, vec4(LN_2_HIGH), fma(log.n, vec4(-LN_2_LOW), log.ln_f));
    value = select(value, x, given == vec4(0x7f800000u));
    value = select(value, vec4(-positive_infinity()), (given << vec4(1u)) == vec4(0u));
    // the sign bit is that of everything below zero, of -inf too
    return select(value, vec4(nan()), (given > vec4(0x80000000u)));
}

// x^y for x > 0. The whole part of y log2 x becomes an exponent, so only the remainder is rounded;
// e^(y ln x) would be off by the rounding of all of y ln x.
fn power4(x: vec4<f32>, y: f32) -> vec4<f32> {
    let log = ln_parts(x);
    let whole = round(clamp(y * fma(log.ln_f, vec4(LOG2_E), log.n), vec4(-252.0), vec4(252.0)));
    let remainder = fma(fma(vec4(y), log.n, -whole), vec4(LN_2), y * log.ln_f);
    let n = vec4<i32>(whole);
    let half = n >> vec4(1u);
    return (exp4(remainder) * power_of_two(half)) * power_of_two(n - half);
}

// 1 / (1 + e^-x), with all of its digits however small it is.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    let small = exp_nonpositive(-abs(x));
    let larger = 1.0 / (1.0 + small);
    return select(small * larger, larger, x >= vec4(0.0));
}

// Of tanh x as x + x z p(z) with z = x^2: the coefficients of Cephes' tanhf.
const TANH_1: f32 = -3.33332819422e-1; // -1/3
const TANH_2: f32 = 1.33314422036e-1; // 2/15
const TANH_3: f32 = -5.37397155531e-2; // -17/315
const TANH_4: f32 = 2.06390887954e-2; // 62/2835
const TANH_5: f32 = -5.70498872745e-3; // -1382/155925

// tanh x, by the polynomial below 5/8, where the quotient cancels.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let z = x * x;
    var p = fma(z, vec4(TANH_5), vec4(TANH_4));
    p = fma(z, p, vec4(TANH_3));
    p = fma(z, p, vec4(TANH_2));
    p = fma(z, p, vec4(TANH_1));
    let e = exp_nonpositive(-2.0 * abs(x));
    let quotient = sign(x) * ((1.0 - e) / (1.0 + e));
    return select(quotient, fma(x * z, p, x), abs(x) < vec4(0.625));
}

// Its derivative, computed as the square of the hyperbolic secant, because 1 - tanh^2 cancels.
fn tanh_slope4(x: vec4<f32>) -> vec4<f32> {
    let e = exp_nonpositive(-2.0 * abs(x));
    let inverse = 1.0 / (1.0 + e);
    return 4.0 * e * inverse * inverse;
}

// Of 2 atanh(s) as above, for a larger range of s.
const LOG1P_1: f32 = 0.666664162; // 2/3
const LOG1P_2: f32 = 0.400215342; // 2/5
const LOG1P_3: f32 = 0.280016786; // 2/7
const LOG1P_4: f32 = 0.280126651; // 2/9

// ln(1 + u) for u in [-1/2, 1], as 2 atanh(u / (2 + u)), which does not cancel near 0.
fn log1p_unit(u: vec4<f32>) -> vec4<f32> {
    let s = u / (u + 2.0);
    let z = s * s;
    var p = fma(z, vec4(LOG1P_4), vec4(LOG1P_3));
    p = fma(z, p, vec4(LOG1P_2));
    p = fma(z, p, vec4(LOG1P_1));
    return fma(s * z, p, s + s);
}

// ln(1 + u) for any u >= 0. Above 1 the built-in log is good enough; it is poor only near 1.
fn log1p(u: f32) -> f32 {
    return select(log1p_unit(vec4(min(u, 1.0))).x, log(1.0 + u), u > 1.0);
}

// The sum of the four lanes.
fn add_up(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// x / 4 beside numbers near the end of f32, where small ones count as 0; an infinity stays. By its
// exponent, because a compiler may factor a quarter out of a difference of products.
fn quarter4(x: vec4<f32>) -> vec4<f32> {
    let quarter = bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) - vec4(0x01000000u));
    return select(select(quarter, vec4(0.0), abs(x) < vec4(1e-30)), x, is_infinity4(x));
}

// Whether x - y is beyond f32, and not an operand.
fn is_difference_beyond4(x: vec4<f32>, y: vec4<f32>) -> vec4<bool> {
    return is_infinity4(x - y) & !(is_infinity4(x) | is_infinity4(y));
}

// x / 2 - y / 2 of large numbers.
fn difference_of_halves4(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    let one_exponent = vec4(0x00800000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) - one_exponent)
        - bitcast<vec4<f32>>(bitcast<vec4<u32>>(y) - one_exponent);
}

// factor * (|x - y| - threshold / 2), also where |x - y| is beyond f32 and that is not: of halves there, with
// parts that are not constant, because a compiler may join constants.
fn linear_loss4(x: vec4<f32>, y: vec4<f32>, factor: f32, threshold: f32) -> vec4<f32> {
    let is_beyond = is_difference_beyond4(x, y);
    let distance = select(abs(x - y), abs(difference_of_halves4(x, y)), is_beyond);
    let part = select(vec4(0.5), vec4(0.25), is_beyond);
    let whole = select(vec4(1.0), vec4(2.0), is_beyond);
    return (factor * (distance - part * threshold)) * whole;
}

// factor * value, where a factor of exactly 0 gives 0 whatever the value is: an infinity, or NaN.
// Where a NaN must win, its place is taken afterwards.
fn zero_wins(factor: vec4<f32>, value: vec4<f32>) -> vec4<f32> {
    return select(factor * value, vec4(0.0), factor == vec4(0.0));
}

// Whether v is subnormal and above 0. Drivers may read such numbers as 0.
fn is_subnormal4(v: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(v) - vec4(1u) < vec4(0x007fffffu);
}

// 2^126 v for small v >= 0. A subnormal is taken by its integer, because drivers may read it as 0.
fn enlarged(v: vec4<f32>) -> vec4<f32> {
    let subnormal = vec4<f32>(bitcast<vec4<i32>>(v)) * 1.1920928955078125e-7;
    return select(v * 8.507059173023462e37, subnormal, is_subnormal4(v));
}

// zero_wins of a target, which may be subnormal, and what it costs.
fn target_product(t: vec4<f32>, cost: vec4<f32>) -> vec4<f32> {
    let is_subnormal = is_subnormal4(t);
    let product = zero_wins(select(t, enlarged(t), is_subnormal), cost);
    // The factor is selected, not the product, because a product that is subnormal costs a
    // processor a hundred cycles, also where it is not selected.
    return product * select(vec4(1.0), vec4(SMALLEST), is_subnormal);
}

// The same times a weight, which may be large where the product is subnormal.
fn weighted_target_product(weight: vec4<f32>, t: vec4<f32>, cost: vec4<f32>) -> vec4<f32> {
    let is_subnormal = is_subnormal4(t);
    let product = zero_wins(weight, zero_wins(select(t, enlarged(t), is_subnormal), cost));
    return product * select(vec4(1.0), vec4(SMALLEST), is_subnormal);
}
