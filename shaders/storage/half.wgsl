// 16-bit storage that is read and written element by element, at any alignment and any stride. A
// word holds two elements, which may belong to different rows, or one of them to another tensor.
// So a half is written by atomic operations on its own bits alone: the writer of the other half
// is not disturbed, and the result does not depend on who comes first.
//
// A file of encoding/ says what the 16 bits mean.

alias Word = u32;

// Whether `last` is always 3.
const WHOLE_VEC4S: bool = false;

// [rows, classes] or [elements], as the input
@group(0) @binding(2) var<storage, read> targets: array<u32>;
// [rows], [rows, classes] or [elements]: as the loss or the output
@group(0) @binding(4) var<storage, read> upstream: array<u32>;
// [rows, classes] or [elements]
@group(0) @binding(5) var<storage, read_write> grad: array<atomic<u32>>;
// [rows, classes] or [elements]: of maps
@group(0) @binding(6) var<storage, read_write> outputs: array<atomic<u32>>;

fn grad_word(i: u32) -> u32 {
    return atomicLoad(&grad[i]);
}

// Four elements, given their indices and the words that they lie in.
fn decode_at(at: vec4<u32>, words: vec4<u32>) -> vec4<f32> {
    let half = words >> (16u * (at & vec4(1u)));
    return vec4(
        decode_pair(half.x).x, decode_pair(half.y).x, decode_pair(half.z).x, decode_pair(half.w).x);
}

fn load_input(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    let w = i / 2u;
    return decode_at(i, vec4(input_word(w.x), input_word(w.y), input_word(w.z), input_word(w.w)));
}

fn load_input_element(at: u32) -> f32 {
    return decode_at(vec4(at), vec4(input_word(at / 2u))).x;
}

fn load_targets(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    let w = i / 2u;
    return decode_at(i, vec4(targets[w.x], targets[w.y], targets[w.z], targets[w.w]));
}

fn load_upstream(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    let w = i / 2u;
    return decode_at(i, vec4(upstream[w.x], upstream[w.y], upstream[w.z], upstream[w.w]));
}

fn load_upstream_element(at: u32) -> f32 {
    return decode_at(vec4(at), vec4(upstream[at / 2u])).x;
}

// What is to be written of four elements, one apart: of the up to three words that they lie in.
struct Words {
    // which bits of each word stay as they are
    kept: vec3<u32>,
    bits: vec3<u32>,
}

fn words_of(at: u32, last: u32, value: vec4<f32>) -> Words {
    let exists = vec4(0u, 1u, 2u, 3u) <= vec4(last);
    let half = select(vec4(0u), encode4(value), exists);
    let mask = select(vec4(0u), vec4(0xffffu), exists);
    if at % 2u == 0u {
        return Words(
            ~vec3(mask.x | (mask.y << 16u), mask.z | (mask.w << 16u), 0u),
            vec3(half.x | (half.y << 16u), half.z | (half.w << 16u), 0u));
    }
    return Words(
        ~vec3(mask.x << 16u, mask.y | (mask.z << 16u), mask.w),
        vec3(half.x << 16u, half.y | (half.z << 16u), half.w));
}

fn put_grad(i: u32, kept: u32, bits: u32) {
    if kept == 0u {
        atomicStore(&grad[i], bits);
    } else if kept != 0xffffffffu {
        atomicAnd(&grad[i], kept);
        atomicOr(&grad[i], bits);
    }
}

fn put_grad_half(at: u32, half: u32) {
    let shift = 16u * (at % 2u);
    put_grad(at / 2u, ~(0xffffu << shift), half << shift);
}

fn store_grad(at: u32, step: u32, last: u32, value: vec4<f32>) {
    if step == 1u {
        let words = words_of(at, last, value);
        put_grad(at / 2u, words.kept.x, words.bits.x);
        put_grad(at / 2u + 1u, words.kept.y, words.bits.y);
        put_grad(at / 2u + 2u, words.kept.z, words.bits.z);
        return;
    }
    // without a loop, because software devices bound the iterations of an invocation
    let half = encode4(value);
    put_grad_half(at, half.x);
    if last >= 1u {
        put_grad_half(at + step, half.y);
    }
    if last >= 2u {
        put_grad_half(at + 2u * step, half.z);
    }
    if last >= 3u {
        put_grad_half(at + 3u * step, half.w);
    }
}

fn put_output(i: u32, kept: u32, bits: u32) {
    if kept == 0u {
        atomicStore(&outputs[i], bits);
    } else if kept != 0xffffffffu {
        atomicAnd(&outputs[i], kept);
        atomicOr(&outputs[i], bits);
    }
}

fn put_output_half(at: u32, half: u32) {
    let shift = 16u * (at % 2u);
    put_output(at / 2u, ~(0xffffu << shift), half << shift);
}

fn store_output(at: u32, step: u32, last: u32, value: vec4<f32>) {
    if step == 1u {
        let words = words_of(at, last, value);
        put_output(at / 2u, words.kept.x, words.bits.x);
        put_output(at / 2u + 1u, words.kept.y, words.bits.y);
        put_output(at / 2u + 2u, words.kept.z, words.bits.z);
        return;
    }
    let half = encode4(value);
    put_output_half(at, half.x);
    if last >= 1u {
        put_output_half(at + step, half.y);
    }
    if last >= 2u {
        put_output_half(at + 2u * step, half.z);
    }
    if last >= 3u {
        put_output_half(at + 3u * step, half.w);
    }
}
