// Writes zeros after each row of a gradient whose rows are padded, so that a product over all columns
// finds none of what was there before. One invocation a vec4 of padding.
//
// Writes `grad` ([rows, stride]): the elements behind the classes of each row. Rows of 16 bits may
// share words (storage/half.wgsl).

struct Params {
    offsets: array<vec4<u32>, 9>,
    rows: u32,
    // the elements of padding after each row
    padding: u32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn zero_padding(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    read_offsets();
    let index = 64u * (workgroup.x + workgroup.y * workgroups.x) + invocation;
    let vec4s = (params.padding + 3u) / 4u;
    let row = index / vec4s;
    let column = 4u * (index - row * vec4s);
    if row < params.rows {
        let last = min(params.padding - 1u - column, 3u);
        store_grad(element_index(GRAD, row, column), 1u, last, vec4(0.0));
    }
}
