// Huber loss: the hooks of family/elements.wgsl. settings[0].x is delta.

// Where d is below delta. Nothing is beyond a delta of infinity, an infinite d included.
fn is_squared(d: vec4<f32>, delta: f32) -> vec4<bool> {
    return (abs(d) < vec4(delta)) | is_infinity4(vec4(delta));
}

fn loss(e: Elements) -> vec4<f32> {
    let delta = params.settings[0].x;
    let d = abs(e.x - e.t);
    let linear = linear_loss4(e.x, e.t, delta, delta);
    return select(linear, 0.5 * d * d, is_squared(d, delta));
}

fn gradient(e: Elements) -> vec4<f32> {
    let delta = params.settings[0].x;
    let d = e.x - e.t;
    return select(delta * sign(d), d, is_squared(d, delta));
}
