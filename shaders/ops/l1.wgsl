// Absolute error: the hooks of family/elements.wgsl.

fn loss(e: Elements) -> vec4<f32> {
    return abs(e.x - e.t);
}

fn gradient(e: Elements) -> vec4<f32> {
    return sign(e.x - e.t);
}
