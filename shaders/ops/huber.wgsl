// Huber loss: the hooks of family/elements.wgsl. settings[0].x is delta.

fn loss(e: Elements) -> vec4<f32> {
    let delta = params.settings[0].x;
    let d = abs(e.x - e.t);
    return select(delta * (d - 0.5 * delta), 0.5 * d * d, d < vec4(delta));
}

fn gradient(e: Elements) -> vec4<f32> {
    let delta = params.settings[0].x;
    let d = e.x - e.t;
    return select(delta * sign(d), d, abs(d) < vec4(delta));
}
