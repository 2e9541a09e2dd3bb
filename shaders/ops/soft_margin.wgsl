// Soft margin: the hooks of family/elements.wgsl, as softplus of -t x.

fn loss(e: Elements) -> vec4<f32> {
    let z = -annihilating_product(e.t, e.x);
    return max(z, vec4(0.0)) + log1p_unit(exp_nonpositive(-abs(z)));
}

fn gradient(e: Elements) -> vec4<f32> {
    return -annihilating_product(e.t, sigmoid4(-annihilating_product(e.t, e.x)));
}
