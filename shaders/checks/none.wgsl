// For ops that take any input and target.

fn unacceptable(at: Vec4Index, x: vec4<f32>, t: vec4<f32>) -> vec4<bool> {
    return vec4(false);
}
