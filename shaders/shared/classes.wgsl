// Class-index targets and class weights.

@group(0) @binding(2) var<storage, read> class_indices: array<i32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;

override WEIGHTED: bool = false;

const ROW_KEPT: u32 = 0u;
const ROW_IGNORED: u32 = 1u;
// a class outside 0..classes
const ROW_BAD: u32 = 2u;

struct Label {
    kind: u32,
    index: i32,
}

fn label_of_row(row: u32, ignore_index: i32, classes: u32) -> Label {
    let index = class_indices[place(TARGETS, 0u, row)];
    if index == ignore_index {
        return Label(ROW_IGNORED, index);
    }
    // a negative index becomes a large one
    return Label(select(ROW_BAD, ROW_KEPT, u32(index) < classes), index);
}

fn class_weight(index: u32) -> f32 {
    if WEIGHTED {
        return weight[place(WEIGHT, 0u, index)];
    }
    return 1.0;
}

// The weights of four classes from c on; those past the end repeat the last one.
fn class_weights(c: u32) -> vec4<f32> {
    if WEIGHTED {
        let i = place(WEIGHT, 0u, 0u) + min(vec4(c, c + 1u, c + 2u, c + 3u), vec4(params.classes - 1u));
        return vec4(weight[i.x], weight[i.y], weight[i.z], weight[i.w]);
    }
    return vec4(1.0);
}
