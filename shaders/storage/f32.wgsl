// f32 storage that is read and written element by element, at any alignment and any stride.
//
// Every file in this folder defines the buffers whose storage type varies, and the same functions
// over them. Loads and
// stores move four elements, `step` apart, the first of which is element `at` of the binding.
// `last`, in 0..=3, says which of the four is the last that exists: later ones repeat it when
// they are loaded, and are not stored. The input is read through a file of access/.

alias Word = f32;

// Whether `last` is always 3.
const WHOLE_VEC4S: bool = false;

// [rows, classes] or [elements], as the input
@group(0) @binding(2) var<storage, read> targets: array<f32>;
// [rows], [rows, classes] or [elements]: as the loss or the output
@group(0) @binding(4) var<storage, read> upstream: array<f32>;
// [rows, classes] or [elements]
@group(0) @binding(5) var<storage, read_write> grad: array<f32>;
// [rows, classes] or [elements]: of maps
@group(0) @binding(6) var<storage, read_write> outputs: array<f32>;

fn grad_word(i: u32) -> f32 {
    return grad[i];
}

fn load_input(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    return vec4(input_word(i.x), input_word(i.y), input_word(i.z), input_word(i.w));
}

fn load_input_element(at: u32) -> f32 {
    return input_word(at);
}

fn load_targets(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    return vec4(targets[i.x], targets[i.y], targets[i.z], targets[i.w]);
}

fn load_upstream(at: u32, step: u32, last: u32) -> vec4<f32> {
    let i = at + min(vec4(0u, 1u, 2u, 3u), vec4(last)) * step;
    return vec4(upstream[i.x], upstream[i.y], upstream[i.z], upstream[i.w]);
}

fn load_upstream_element(at: u32) -> f32 {
    return upstream[at];
}

fn store_grad(at: u32, step: u32, last: u32, value: vec4<f32>) {
    grad[at] = value.x;
    if last >= 1u {
        grad[at + step] = value.y;
    }
    if last >= 2u {
        grad[at + 2u * step] = value.z;
    }
    if last >= 3u {
        grad[at + 3u * step] = value.w;
    }
}

fn store_output(at: u32, step: u32, last: u32, value: vec4<f32>) {
    outputs[at] = value.x;
    if last >= 1u {
        outputs[at + step] = value.y;
    }
    if last >= 2u {
        outputs[at + 2u * step] = value.z;
    }
    if last >= 3u {
        outputs[at + 3u * step] = value.w;
    }
}
