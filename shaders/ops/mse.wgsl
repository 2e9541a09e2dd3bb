// Mean squared error: the hooks of family/elements.wgsl.

fn loss(e: Elements) -> vec4<f32> {
    let d = e.x - e.t;
    return d * d;
}

// A fourth of it (GRAD_FACTOR).
fn gradient(e: Elements) -> vec4<f32> {
    return half_difference4(e.x, e.t);
}
