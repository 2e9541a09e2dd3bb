// Any input and target is accepted.

fn unacceptable(quad: Quad, x: vec4<f32>, t: vec4<f32>) -> vec4<bool> {
    return vec4(false);
}
