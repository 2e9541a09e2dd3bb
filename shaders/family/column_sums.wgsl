// Sums of the columns of a matrix, in the order of its rows: the gradient of a bias. One invocation four columns.
//
// Reads `matrix`, [rows, columns] in whole vec4s, and `grad` where it accumulates. Writes `grad`, [columns].

struct Params {
    offsets: array<vec4<u32>, 9>,
    rows: u32,
    columns: u32,
    accumulates: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> matrix: array<vec4<f32>>;

@compute @workgroup_size(64)
fn column_sums(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    read_offsets();
    let column = 4u * (64u * (workgroup.x + workgroup.y * workgroups.x) + invocation);
    if column < params.columns {
        let last = min(params.columns - 1u - column, 3u);
        let at = element_index(GRAD, 0u, column);
        var sum = vec4(0.0);
        if params.accumulates != 0u {
            sum = load_input(at, 1u, last);
        }
        for (var row = 0u; row < params.rows; row += 1u) {
            sum += matrix[element_index(TARGETS, row, column / 4u)];
        }
        store_grad(at, 1u, last, sum);
    }
}
