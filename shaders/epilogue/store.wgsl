// Products that are stored, or added to what is there.
//
// Reads and writes `grad`, the result, through access/in_place.wgsl: each element by one member of one team.

struct Params {
    offsets: array<vec4<u32>, 9>,
    rows: u32,
    columns: u32,
    terms: u32,
    // how many tiles lie side by side
    tiles_across: u32,
    has_bias: u32,
    accumulates: u32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

fn accumulates() -> bool {
    return params.accumulates != 0u;
}

// What the sums of four columns of a row begin with.
fn start_of(row: u32, column: u32) -> vec4<f32> {
    if !accumulates() || row >= params.rows || column >= params.columns {
        return vec4(0.0);
    }
    let last = min(params.columns - 1u - column, 3u);
    return load_input(element_index(GRAD, row, column), 1u, last);
}

// Stores four columns of a row of the product, as far as there are such.
fn store_product(row: u32, column: u32, product: vec4<f32>) {
    if row >= params.rows || column >= params.columns {
        return;
    }
    let last = min(params.columns - 1u - column, 3u);
    store_grad(element_index(GRAD, row, column), 1u, last, product + bias_of(column));
}

fn finish_row(
    team: Team, row: u32, column: u32, product: vec4<f32>, next: u32, more: vec4<f32>,
) {
    store_product(row, column, product);
    store_product(row, next, more);
}
