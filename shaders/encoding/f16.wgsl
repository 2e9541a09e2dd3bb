// f16. Numbers are encoded in integer arithmetic, because drivers differ in what pack2x16float
// makes of too large a number.

// The two numbers of a word. The first is in the lower half.
fn decode_pair(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

// The 16 bits of four numbers, rounded to nearest even. They are infinite from 65520 on; NaN stays
// NaN.
fn encode4(value: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let magnitude = bits & vec4(0x7fffffffu);
    // Moves the exponent's bias from 127 to 15, and adds half of a unit in the last place, less its
    // smallest bit if that place is even.
    let is_odd = (magnitude >> vec4(13u)) & vec4(1u);
    let rounded = (magnitude - vec4(0x38000000u) + vec4(0xfffu) + is_odd) >> vec4(13u);
    let normal = min(rounded, vec4(0x7c00u));
    // Below 2^-14 the addition of 1/2 leaves multiples of 2^-24 in the last bits, and rounds
    // likewise.
    let shifted = bitcast<vec4<f32>>(min(magnitude, vec4(0x38800000u))) + vec4(0.5);
    let subnormal = bitcast<vec4<u32>>(shifted) - vec4(0x3f000000u);
    var half = select(normal, subnormal, magnitude < vec4(0x38800000u));
    half = select(half, vec4(0x7e00u), magnitude > vec4(0x7f800000u));
    return half | ((bits >> vec4(16u)) & vec4(0x8000u));
}
