// BCE with logits: the hooks of family/elements.wgsl. Neither form cancels.

fn loss(e: Elements) -> vec4<f32> {
    let q = log1p_unit(exp_nonpositive(-abs(e.x)));
    return annihilating_product(e.pos_weight * e.t, q + max(-e.x, vec4(0.0)))
        + annihilating_product(1.0 - e.t, q + max(e.x, vec4(0.0)));
}

fn gradient(e: Elements) -> vec4<f32> {
    let small = exp_nonpositive(-abs(e.x));
    let larger = 1.0 / (1.0 + small);
    let smaller = small * larger;
    let is_positive = e.x >= vec4(0.0);
    let sigmoid = select(smaller, larger, is_positive);
    let sigmoid_of_negative = select(larger, smaller, is_positive);
    return (1.0 - e.t) * sigmoid - e.pos_weight * e.t * sigmoid_of_negative;
}
