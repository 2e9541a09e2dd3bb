// Smooth L1: the hooks of family/elements.wgsl. settings[0].x is beta. With a beta of 0 no distance is
// below it, and the loss is L1.

fn loss(e: Elements) -> vec4<f32> {
    let beta = params.settings[0].x;
    let d = abs(e.x - e.t);
    return select(d - 0.5 * beta, 0.5 * d * (d / max(beta, SMALLEST)), d < vec4(beta));
}

fn gradient(e: Elements) -> vec4<f32> {
    let beta = params.settings[0].x;
    let d = e.x - e.t;
    return select(sign(d), d / max(beta, SMALLEST), abs(d) < vec4(beta));
}
