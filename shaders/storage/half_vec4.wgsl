// 16-bit storage that is read and written as vec4, eight bytes at a time. The host chooses this
// file only where elements are one apart (`step` is 1) and every vec4 is aligned (`at` is a
// multiple of 4) and whole (`last` is 3).
//
// A file of encoding/ says what the 16 bits mean.

alias Word = vec2<u32>;

// Whether `last` is always 3.
const WHOLE_VEC4S: bool = true;

// [rows, classes] or [elements], as the input
@group(0) @binding(2) var<storage, read> targets: array<vec2<u32>>;
// [rows], [rows, classes] or [elements]: as the loss or the output
@group(0) @binding(4) var<storage, read> upstream: array<vec2<u32>>;
// The same buffer, for kernels that read single elements of it.
@group(0) @binding(4) var<storage, read> upstream_pairs: array<u32>;
// [rows, classes] or [elements]
@group(0) @binding(5) var<storage, read_write> grad: array<vec2<u32>>;
// [rows, classes] or [elements]: of maps
@group(0) @binding(6) var<storage, read_write> outputs: array<vec2<u32>>;

fn grad_word(i: u32) -> vec2<u32> {
    return grad[i];
}

fn decode_word(word: vec2<u32>) -> vec4<f32> {
    return vec4(decode_pair(word.x), decode_pair(word.y));
}

fn encode_word(value: vec4<f32>) -> vec2<u32> {
    let half = encode4(value);
    return half.xz | (half.yw << vec2(16u));
}

fn load_input(at: u32, step: u32, last: u32) -> vec4<f32> {
    return decode_word(input_word(at / 4u));
}

fn load_input_element(at: u32) -> f32 {
    let four = decode_word(input_word(at / 4u));
    return four[at % 4u];
}

fn load_targets(at: u32, step: u32, last: u32) -> vec4<f32> {
    return decode_word(targets[at / 4u]);
}

fn load_upstream(at: u32, step: u32, last: u32) -> vec4<f32> {
    return decode_word(upstream[at / 4u]);
}

fn load_upstream_element(at: u32) -> f32 {
    let pair = decode_pair(upstream_pairs[at / 2u]);
    return select(pair.x, pair.y, at % 2u == 1u);
}

fn store_grad(at: u32, step: u32, last: u32, value: vec4<f32>) {
    grad[at / 4u] = encode_word(value);
}

fn store_output(at: u32, step: u32, last: u32, value: vec4<f32>) {
    outputs[at / 4u] = encode_word(value);
}
