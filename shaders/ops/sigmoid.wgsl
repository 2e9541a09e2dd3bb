// Sigmoid: the hooks of family/elements.wgsl for a map, whose `loss` is its output.

fn loss(e: Elements) -> vec4<f32> {
    return sigmoid4(e.x);
}

fn gradient(e: Elements) -> vec4<f32> {
    return sigmoid4(e.x) * sigmoid4(-e.x);
}
