// Elementary functions of known accuracy, and tests for NaN and infinities that every driver keeps.
//
// WGSL's own exp may be off by 3 + 2|x| ULP, and its log by 2^-21 absolute near 1, which is all of
// log1p of something small. Measured against float64 on lavapipe and SwiftShader: exp_nonpositive
// 3 ULP, log1p 2 ULP.

// The lowest finite f32: a neutral element for max that stays finite in differences.
const LOWEST: f32 = -3.4028234663852886e38;
// The smallest normal f32.
const SMALLEST: f32 = 1.1754943508222875e-38;

// Through a variable, because constant expressions must not be infinite or NaN in WGSL.
fn positive_infinity() -> f32 {
    var bits = 0x7f800000u;
    return bitcast<f32>(bits);
}

fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

// By bits: drivers may assume that NaN does not occur, and fold `x != x` to false.
fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

fn is_nan4(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) > vec4(0x7f800000u);
}

fn is_negative_infinity4(x: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(x) == vec4(0xff800000u);
}

fn is_same_infinity4(x: vec4<f32>, y: vec4<f32>) -> vec4<bool> {
    let bits = bitcast<vec4<u32>>(x);
    return (bits == bitcast<vec4<u32>>(y)) & ((bits & vec4(0x7fffffffu)) == vec4(0x7f800000u));
}

// Finds +inf, and NaN of either sign, in many numbers, in integer arithmetic: as integers they are
// the largest of their sign.
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
// y = n ln 2 + r, with ln 2 in two parts. The first has nine bits, so that its product with n is exact.
// For the second, n is (y - r) / ln 2: a multiple of y is added, which leaves 1.00030613 r, and the
// coefficients are divided by the powers of that.
struct Exp {
    p: vec4<f32>,
    // n + 127 in the lowest bits
    n: vec4<i32>,
}

// Added to a small number, leaves its nearest integer plus 127 in the lowest bits.
const TO_EXPONENT: f32 = 12583039.0; // 1.5 * 2^23 + 127

fn exp_parts(y: vec4<f32>) -> Exp {
    let n = bitcast<vec4<i32>>(fma(y, vec4(1.44269504), vec4(TO_EXPONENT)));
    // as integers: a compiler may cancel what was added as a float
    let whole = vec4<f32>(n - vec4(bitcast<i32>(TO_EXPONENT)));
    // Not `whole` times the second part: Mesa would join `whole a + whole b` to `whole (a + b)`, and be
    // off by 2^-24 |y|.
    let r = fma(y, vec4(3.06131867e-4), fma(whole, vec4(-0.693359375), y));
    var p = fma(r, vec4(1.40361668e-3), vec4(8.36638889e-3));
    p = fma(r, p, vec4(4.16137807e-2));
    p = fma(r, p, vec4(1.66510660e-1));
    p = fma(r, p, vec4(4.99694053e-1));
    p = fma(r, p, vec4(9.99694012e-1));
    return Exp(fma(r, p, vec4(1.0)), n);
}

// 2^n for n from -126 to 127, and 0 for -127.
fn power_of_two(n: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((n + vec4(127)) << vec4(23u));
}

// e^x for x <= 0, -inf included; 0 below -87.7.
fn exp_nonpositive(x: vec4<f32>) -> vec4<f32> {
    let e = exp_parts(max(x, vec4(-88.0)));
    // all but the exponent is shifted out
    return e.p * bitcast<vec4<f32>>(e.n << vec4(23u));
}

// e^x; 0 below -87, infinite where f32 ends.
fn exp4(x: vec4<f32>) -> vec4<f32> {
    let e = exp_parts(clamp(x, vec4(-88.0), vec4(89.0)));
    // in two factors, since 2^128 is infinite though e^x may not be yet
    let n = e.n - vec4(bitcast<i32>(TO_EXPONENT));
    let half = n >> vec4(1u);
    let value = (e.p * power_of_two(half)) * power_of_two(n - half);
    let bounded = select(value, vec4(0.0), x < vec4(-87.0));
    return select(bounded, vec4(positive_infinity()), x > vec4(88.72283));
}

// x = f * 2^n with f in [sqrt(1/2), sqrt(2)), so that near 1, where ln x is small, nothing is added
// to the series of ln f = 2 atanh((f - 1) / (f + 1)).
struct Log {
    ln_f: vec4<f32>,
    n: vec4<f32>,
}

fn ln_parts(x: vec4<f32>) -> Log {
    let given = bitcast<vec4<u32>>(x);
    // subnormals by their integer: drivers may read them as 0
    let is_subnormal = given < vec4(0x00800000u);
    let bits = bitcast<vec4<i32>>(select(x, vec4<f32>(given), is_subnormal));
    let n = (bits - vec4(0x3f3504f3)) >> vec4(23u);
    let f = bitcast<vec4<f32>>(bits - (n << vec4(23u)));
    let s = (f - 1.0) / (f + 1.0);
    let z = s * s;
    var p = fma(z, vec4(0.298724067), vec4(0.399775238));
    p = fma(z, p, vec4(0.666667765));
    let exponent = vec4<f32>(n) - select(vec4(0.0), vec4(149.0), is_subnormal);
    return Log(fma(s * z, p, s + s), exponent);
}

// ln x; -inf at 0, NaN below.
fn ln4(x: vec4<f32>) -> vec4<f32> {
    let given = bitcast<vec4<u32>>(x);
    let log = ln_parts(x);
    var value = fma(log.n, vec4(0.693359375), fma(log.n, vec4(-2.12194440e-4), log.ln_f));
    value = select(value, x, given == vec4(0x7f800000u));
    value = select(value, vec4(-positive_infinity()), (given << vec4(1u)) == vec4(0u));
    // the sign bit: everything below zero, and -inf
    return select(value, vec4(nan()), (given > vec4(0x80000000u)));
}

// x^y for x > 0. The whole part of y log2 x is an exponent; only the rest of it is rounded, while
// e^(y ln x) is off by that of y ln x.
fn power4(x: vec4<f32>, y: f32) -> vec4<f32> {
    let log = ln_parts(x);
    let whole = round(clamp(y * fma(log.ln_f, vec4(1.44269504), log.n), vec4(-252.0), vec4(252.0)));
    let rest = fma(fma(vec4(y), log.n, -whole), vec4(0.693147181), y * log.ln_f);
    let n = vec4<i32>(whole);
    let half = n >> vec4(1u);
    return (exp4(rest) * power_of_two(half)) * power_of_two(n - half);
}

// 1 / (1 + e^-x), to its last digit however small.
fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    let small = exp_nonpositive(-abs(x));
    let larger = 1.0 / (1.0 + small);
    return select(small * larger, larger, x >= vec4(0.0));
}

// tanh x: below 5/8, where the quotient cancels, a polynomial (coefficients of Cephes' tanhf).
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let z = x * x;
    var p = fma(z, vec4(-5.70498872745e-3), vec4(2.06390887954e-2));
    p = fma(z, p, vec4(-5.37397155531e-2));
    p = fma(z, p, vec4(1.33314422036e-1));
    p = fma(z, p, vec4(-3.33332819422e-1));
    let e = exp_nonpositive(-2.0 * abs(x));
    let quotient = sign(x) * ((1.0 - e) / (1.0 + e));
    return select(quotient, fma(x * z, p, x), abs(x) < vec4(0.625));
}

// Its derivative: as the square of the hyperbolic secant, since 1 - tanh^2 cancels.
fn tanh_slope4(x: vec4<f32>) -> vec4<f32> {
    let e = exp_nonpositive(-2.0 * abs(x));
    let inverse = 1.0 / (1.0 + e);
    return 4.0 * e * inverse * inverse;
}

// ln(1 + u) for u in [-1/2, 1]: 2 atanh(u / (2 + u)), which does not cancel near 0.
fn log1p_unit(u: vec4<f32>) -> vec4<f32> {
    let s = u / (u + 2.0);
    let z = s * s;
    var p = fma(z, vec4(0.280126651), vec4(0.280016786));
    p = fma(z, p, vec4(0.400215342));
    p = fma(z, p, vec4(0.666664162));
    return fma(s * z, p, s + s);
}

// ln(1 + u) for any u >= 0. Above 1 the built-in log is as good: it is poor only near 1.
fn log1p(u: f32) -> f32 {
    return select(log1p_unit(vec4(min(u, 1.0))).x, log(1.0 + u), u > 1.0);
}

// The sum of four.
fn add_up(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// A factor of exactly 0 annihilates what it multiplies, an infinity too.
fn annihilating_product(factor: vec4<f32>, value: vec4<f32>) -> vec4<f32> {
    return select(factor * value, vec4(0.0), factor == vec4(0.0));
}

// Above 0 and subnormal. Drivers may read such numbers as 0.
fn is_subnormal4(v: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(v) - vec4(1u) < vec4(0x007fffffu);
}

// 2^126 v for small v >= 0: of a subnormal by its integer.
fn enlarged(v: vec4<f32>) -> vec4<f32> {
    let subnormal = vec4<f32>(bitcast<vec4<i32>>(v)) * 1.1920928955078125e-7;
    return select(v * 8.507059173023462e37, subnormal, is_subnormal4(v));
}

// The annihilating product of a target, which may be subnormal, and what it costs.
fn target_product(t: vec4<f32>, cost: vec4<f32>) -> vec4<f32> {
    let is_subnormal = is_subnormal4(t);
    let product = annihilating_product(select(t, enlarged(t), is_subnormal), cost);
    // chosen before it is multiplied: results that are subnormal cost processors a hundred cycles
    return product * select(vec4(1.0), vec4(SMALLEST), is_subnormal);
}
