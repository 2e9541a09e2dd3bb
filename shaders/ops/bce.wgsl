// Binary cross entropy of probabilities: the hooks of family/elements.wgsl.

// ln(1 - x). Below 1/2 the difference would be rounded, so log1p takes its place; from 1/2 on it is
// exact.
fn ln_of_complement(x: vec4<f32>) -> vec4<f32> {
    return select(ln4(1.0 - x), log1p_unit(-min(x, vec4(0.5))), x <= vec4(0.5));
}

fn loss(e: Elements) -> vec4<f32> {
    return -zero_wins(e.t, max(ln4(e.x), vec4(-100.0)))
        - zero_wins(1.0 - e.t, max(ln_of_complement(e.x), vec4(-100.0)));
}

fn gradient(e: Elements) -> vec4<f32> {
    let usual = (e.x - e.t) / max(e.x * (1.0 - e.x), vec4(1e-12));
    // Where both are tiny, x (1 - x) is below 1e-12, and even a difference of subnormals divided by
    // 1e-12 is a normal number.
    let of_tiny = (enlarged(e.x) - enlarged(e.t)) * 1.1754943508222875e-26;
    return select(usual, of_tiny, max(e.x, e.t) < vec4(1e-30));
}
