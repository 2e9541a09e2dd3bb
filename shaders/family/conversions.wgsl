// Copies between matrices of any storage and alignment, and matrices of f32 whose rows are whole vec4s, which products
// read. One invocation a vec4.
//
// `widen` reads `input` and writes `wide`, with zeros behind each row; `narrow` reads `wide` and writes `grad`. Each element by one
// invocation; rows of 16 bits may share words (storage/half.wgsl).

struct Params {
    offsets: array<vec4<u32>, 9>,
    rows: u32,
    columns: u32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(6) var<storage, read_write> wide: array<vec4<f32>>;

// The row, and the first of four columns.
fn place(workgroup: vec3<u32>, workgroups: vec3<u32>, invocation: u32) -> vec2<u32> {
    let index = 64u * (workgroup.x + workgroup.y * workgroups.x) + invocation;
    let vec4s = (params.columns + 3u) / 4u;
    let row = index / vec4s;
    return vec2(row, 4u * (index - row * vec4s));
}

@compute @workgroup_size(64)
fn widen(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    read_offsets();
    let at = place(workgroup, workgroups, invocation);
    if at.x < params.rows {
        let last = min(params.columns - 1u - at.y, 3u);
        let value = load_input(element_index(INPUT, at.x, at.y), 1u, last);
        let exists = vec4(0u, 1u, 2u, 3u) <= vec4(last);
        wide[element_index(RESULTS, at.x, at.y / 4u)] = select(vec4(0.0), value, exists);
    }
}

@compute @workgroup_size(64)
fn narrow(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    read_offsets();
    let at = place(workgroup, workgroups, invocation);
    if at.x < params.rows {
        let last = min(params.columns - 1u - at.y, 3u);
        let value = wide[element_index(RESULTS, at.x, at.y / 4u)];
        store_grad(element_index(GRAD, at.x, at.y), 1u, last, value);
    }
}
