// Soft margin: the hooks of family/elements.wgsl. The loss is the softplus of -t x.

fn loss(e: Elements) -> vec4<f32> {
    let z = -zero_wins(e.t, e.x);
    return max(z, vec4(0.0)) + log1p_unit(exp_nonpositive(-abs(z)));
}

fn gradient(e: Elements) -> vec4<f32> {
    return -zero_wins(e.t, sigmoid4(-zero_wins(e.t, e.x)));
}
