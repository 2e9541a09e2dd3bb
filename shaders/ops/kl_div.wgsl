// Kullback-Leibler divergence from log-probabilities: the hooks of family/elements.wgsl.

// whether targets are log-probabilities too
override LOG_TARGET: bool = false;

fn loss(e: Elements) -> vec4<f32> {
    if LOG_TARGET {
        return annihilating_product(exp4(e.t), e.t - e.x);
    }
    // 0 ln 0 is 0; the logarithm of a negative number is NaN
    let value = annihilating_product(e.t, ln4(e.t) - e.x);
    return select(value, vec4(nan()), e.t < vec4(0.0));
}

fn gradient(e: Elements) -> vec4<f32> {
    if LOG_TARGET {
        return -exp4(e.t);
    }
    return -e.t;
}
