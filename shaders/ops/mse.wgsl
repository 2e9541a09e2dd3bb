// Mean squared error: the hooks of family/elements.wgsl.

fn loss(e: Elements) -> vec4<f32> {
    let d = e.x - e.t;
    return d * d;
}

fn gradient(e: Elements) -> vec4<f32> {
    return 2.0 * (e.x - e.t);
}
