// Class-index targets and class weights.

// [rows]
@group(0) @binding(2) var<storage, read> class_indices: array<i32>;
// [classes]
@group(0) @binding(3) var<storage, read> weight: array<f32>;

// Whether there are class weights; ones otherwise.
override WEIGHTED: bool = false;

const ROW_KEPT: u32 = 0u;
const ROW_IGNORED: u32 = 1u;
// its class lies outside 0..classes
const ROW_BAD: u32 = 2u;

struct Label {
    kind: u32,
    index: i32,
}

fn label_of_row(row: u32, ignore_index: i32, classes: u32) -> Label {
    let index = class_indices[uniform_index(TARGETS, 0u, row)];
    if index == ignore_index {
        return Label(ROW_IGNORED, index);
    }
    // as u32, a negative index is larger than any class
    return Label(select(ROW_BAD, ROW_KEPT, u32(index) < classes), index);
}

fn class_weight(index: u32) -> f32 {
    if WEIGHTED {
        return weight[uniform_index(WEIGHT, 0u, index)];
    }
    return 1.0;
}

// The weights of four classes from c on. Past the last class its weight is repeated.
fn class_weights(c: u32) -> vec4<f32> {
    if WEIGHTED {
        let i = element_index(WEIGHT, 0u, 0u)
            + min(vec4(c, c + 1u, c + 2u, c + 3u), vec4(params.classes - 1u));
        return vec4(weight[i.x], weight[i.y], weight[i.z], weight[i.w]);
    }
    return vec4(1.0);
}
