// BCE with logits: the hooks of family/elements.wgsl. Loss and gradient are sums of terms of one
// sign for targets in [0, 1], so neither cancels.

fn loss(e: Elements) -> vec4<f32> {
    let q = log1p_unit(exp_nonpositive(-abs(e.x)));
    return weighted_target_product(e.pos_weight, e.t, q + max(-e.x, vec4(0.0)))
        + zero_wins(1.0 - e.t, q + max(e.x, vec4(0.0)));
}

fn gradient(e: Elements) -> vec4<f32> {
    return (1.0 - e.t) * sigmoid4(e.x) - e.pos_weight * e.t * sigmoid4(-e.x);
}
