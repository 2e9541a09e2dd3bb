// f32 storage that is read and written as vec4, sixteen bytes at a time. The host chooses this
// file only where elements are one apart (`step` is 1) and every vec4 is aligned (`at` is a
// multiple of 4) and whole (`last` is 3).

alias Word = vec4<f32>;

// Whether `last` is always 3.
const WHOLE_VEC4S: bool = true;

// [rows, classes] or [elements], as the input
@group(0) @binding(2) var<storage, read> targets: array<vec4<f32>>;
// [rows], [rows, classes] or [elements]: as the loss or the output
@group(0) @binding(4) var<storage, read> upstream: array<vec4<f32>>;
// The same buffer, for kernels that read single elements of it.
@group(0) @binding(4) var<storage, read> upstream_elements: array<f32>;
// [rows, classes] or [elements]
@group(0) @binding(5) var<storage, read_write> grad: array<vec4<f32>>;
// [rows, classes] or [elements]: of maps
@group(0) @binding(6) var<storage, read_write> outputs: array<vec4<f32>>;

fn grad_word(i: u32) -> vec4<f32> {
    return grad[i];
}

fn load_input(at: u32, step: u32, last: u32) -> vec4<f32> {
    return input_word(at / 4u);
}

fn load_input_element(at: u32) -> f32 {
    let word = input_word(at / 4u);
    return word[at % 4u];
}

fn load_targets(at: u32, step: u32, last: u32) -> vec4<f32> {
    return targets[at / 4u];
}

fn load_upstream(at: u32, step: u32, last: u32) -> vec4<f32> {
    return upstream[at / 4u];
}

fn load_upstream_element(at: u32) -> f32 {
    return upstream_elements[at];
}

fn store_grad(at: u32, step: u32, last: u32, value: vec4<f32>) {
    grad[at / 4u] = value;
}

fn store_output(at: u32, step: u32, last: u32, value: vec4<f32>) {
    outputs[at / 4u] = value;
}
