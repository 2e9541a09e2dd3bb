// For ops whose inputs and targets must lie in [0, 1]. The first element where one does not is
// reported in the control block.

fn unacceptable(at: Vec4Index, x: vec4<f32>, t: vec4<f32>) -> vec4<bool> {
    let zero = vec4(0.0);
    let one = vec4(1.0);
    let outside = (x < zero) | (x > one) | (t < zero) | (t > one) | is_nan4(x) | is_nan4(t);
    let bad = outside & (vec4(0u, 1u, 2u, 3u) <= vec4(at.last));
    if any(bad) {
        let which = select(select(select(3u, 2u, bad.z), 1u, bad.y), 0u, bad.x);
        report_bad(at.index + which);
    }
    return bad;
}
