// Log of sigmoid: the hooks of family/elements.wgsl for a map, whose `loss` is its output.

fn loss(e: Elements) -> vec4<f32> {
    return -(log1p_unit(exp_nonpositive(-abs(e.x))) + max(-e.x, vec4(0.0)));
}

fn gradient(e: Elements) -> vec4<f32> {
    return sigmoid4(-e.x);
}
