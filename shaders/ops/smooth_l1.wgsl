// Smooth L1: the hooks of family/elements.wgsl. settings[0].x is beta. With a beta of 0 no distance is
// below it, and the loss is L1.

// d / beta for a beta that is not 0. Where the inverse of beta would be subnormal, which drivers may
// flush, both sides are divided by four.
fn over_beta(d: vec4<f32>) -> vec4<f32> {
    let beta = max(params.settings[0].x, SMALLEST);
    let part = select(1.0, 0.25, beta > 1e37);
    return (part * d) / (part * beta);
}

fn loss(e: Elements) -> vec4<f32> {
    let beta = params.settings[0].x;
    let d = abs(e.x - e.t);
    let linear = linear_loss4(e.x, e.t, 1.0, beta);
    return select(linear, 0.5 * d * over_beta(d), d < vec4(beta));
}

fn gradient(e: Elements) -> vec4<f32> {
    let d = e.x - e.t;
    return select(sign(d), over_beta(d), abs(d) < vec4(params.settings[0].x));
}
