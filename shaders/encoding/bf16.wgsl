// bf16: the upper half of an f32.

// The two numbers of a word, the lower half's first.
fn decode_pair(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2(word << 16u, word & 0xffff0000u));
}

// The 16 bits of four numbers: rounded to nearest even; too large is infinite; NaN stays NaN.
fn encode4(value: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let is_odd = (bits >> vec4(16u)) & vec4(1u);
    let rounded = (bits + vec4(0x7fffu) + is_odd) >> vec4(16u);
    // rounding could carry a NaN over into the sign; a bit that is set anyway keeps it one
    let is_nan = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    return select(rounded, (bits >> vec4(16u)) | vec4(0x40u), is_nan);
}
