// bf16 is the upper half of an f32.

// The two numbers of a word. The first is in the lower half.
fn decode_pair(word: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(vec2(word << 16u, word & 0xffff0000u));
}

// The 16 bits of four numbers, rounded to nearest even. Too large a number becomes infinite; NaN
// stays NaN.
fn encode4(value: vec4<f32>) -> vec4<u32> {
    // Two minima bound NaN, which as integers are the largest of their sign, because rounding could
    // carry them over into the sign. A NaN of arithmetic is quiet, and stays NaN without its lower
    // half.
    let positive = min(bitcast<vec4<i32>>(value), vec4(0x7fff0000));
    let bits = min(bitcast<vec4<u32>>(positive), vec4(0xffff0000u));
    let is_odd = (bits >> vec4(16u)) & vec4(1u);
    return (bits + vec4(0x7fffu) + is_odd) >> vec4(16u);
}
