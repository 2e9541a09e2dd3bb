// Kullback-Leibler divergence from log-probabilities: the hooks of family/elements.wgsl.

// Whether targets are log-probabilities too.
override LOG_TARGET: bool = false;

fn loss(e: Elements) -> vec4<f32> {
    if LOG_TARGET {
        // e^t is multiplied as two square roots, because it may underflow where the loss does
        // not. The roots are 0 only at -inf.
        let t = max(e.t, vec4(-174.0));
        let root = select(exp4(0.5 * t), vec4(0.0), is_negative_infinity4(e.t));
        return zero_wins(root, root * (t - e.x));
    }
    // 0 ln 0 is 0; the logarithm of a negative number is NaN
    let value = target_product(e.t, ln4(e.t) - e.x);
    // A negative number is found by its bits, because drivers may flush one that is just below 0.
    return select(value, vec4(nan()), bitcast<vec4<u32>>(e.t) > vec4(0x80000000u));
}

fn gradient(e: Elements) -> vec4<f32> {
    if LOG_TARGET {
        return -exp4(e.t);
    }
    return -e.t;
}
