// Poisson negative log-likelihood: the hooks of family/elements.wgsl. settings[0].x is eps.

// whether inputs are the logarithms of rates
override LOG_INPUT: bool = true;
// whether losses have Stirling's term
override FULL: bool = false;

fn is_infinity(v: vec4<f32>) -> vec4<bool> {
    return bitcast<vec4<u32>>(v) == vec4(0x7f800000u);
}

// ln(x + eps); NaN below 0. Near 1 what the sum's rounding loses may be all of the logarithm, and the
// difference from 1 is exact.
fn ln_rate(x: vec4<f32>) -> vec4<f32> {
    let eps = vec4(params.settings[0].x);
    let rate = x + eps;
    let is_near_1 = (rate >= vec4(0.5)) & (rate <= vec4(2.0));
    let difference = (max(x, eps) - 1.0) + min(x, eps);
    return select(ln4(rate), log1p_unit(select(vec4(0.0), difference, is_near_1)), is_near_1);
}

// t ln t - t + ln(2 pi t) / 2, with 2 pi apart, since 2 pi t may overflow.
fn stirling(t: vec4<f32>) -> vec4<f32> {
    let ln_t = ln4(t);
    return (t * ln_t - t) + (0.5 * ln_t + 0.918938533);
}

fn loss(e: Elements) -> vec4<f32> {
    var value: vec4<f32>;
    if LOG_INPUT {
        // where e^x is infinite the loss is, though t x may be infinite too
        let rate = exp4(e.x);
        value = select(rate - target_product(e.t, e.x), rate, is_infinity(rate));
    } else {
        let ln = ln_rate(e.x);
        value = select(e.x - target_product(e.t, ln), e.x, is_infinity(e.x));
        // a target of 0 does not make a rate below 0 one
        value = select(value, vec4(nan()), is_nan4(ln));
    }
    if FULL {
        value += select(vec4(0.0), stirling(e.t), e.t > vec4(1.0));
    }
    return value;
}

fn gradient(e: Elements) -> vec4<f32> {
    if LOG_INPUT {
        return exp4(e.x) - e.t;
    }
    let rate = e.x + params.settings[0].x;
    // Where the inverse would be subnormal, which drivers may flush, the rate is divided by four.
    let part = select(vec4(1.0), vec4(0.25), abs(rate) > vec4(1e37));
    let inverse = select(1.0 / (part * rate), vec4(positive_infinity()), rate == vec4(0.0));
    return 1.0 - part * target_product(e.t, inverse);
}
