// Products of matrices in f32: a team computes a tile of the result, whose sums stay in the registers of its
// members (product/).
//
//     out[i, j] = (0, or bias[j], or out[i, j])  + sum over k of left[i, k] right[k, j]
//
// Each sum begins with what it is added to, and is taken in the order of its terms, in every file of product/. So the bits
// depend neither on the tile, nor on how the terms are divided among dispatches. Operands are read as vec4s: along the terms or across them, as the two overrides say.
//
//     LEFT_ALONG_TERMS  RIGHT_ALONG_TERMS    left             right
//     true              true                 [rows, terms]    [columns, terms]     hidden states, projection
//     true              false                [rows, terms]    [terms, columns]     gradient of logits, projection
//     false             false                [terms, rows]    [terms, columns]     gradient of logits, hidden states
//
// Every row of an operand begins at a multiple of four elements, and its last vec4 may be read whole: what
// lies past the last term counts as 0, and past the last row or column as whatever is there, which is not stored.
//
// Reads `left` and `right`, `bias`, and `grad` through access/in_place.wgsl. Writes `grad`, the result: each element by
// one member of one team.

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
@group(0) @binding(2) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> right: array<vec4<f32>>;
// [columns]
@group(0) @binding(4) var<storage, read> bias: array<f32>;

const LEFT: u32 = 2u;
const RIGHT: u32 = 3u;
const BIAS: u32 = 4u;

override LEFT_ALONG_TERMS: bool = true;
override RIGHT_ALONG_TERMS: bool = true;

// A matrix of 4 by 4 elements.
alias Square = array<vec4<f32>, 4>;

fn transposed(m: Square) -> Square {
    return Square(
        vec4(m[0].x, m[1].x, m[2].x, m[3].x), vec4(m[0].y, m[1].y, m[2].y, m[3].y),
        vec4(m[0].z, m[1].z, m[2].z, m[3].z), vec4(m[0].w, m[1].w, m[2].w, m[3].w));
}

// The vec4 of an operand at its row i and columns from j on. Past the last row and column the last are
// repeated.
fn left_vec4(i: u32, j: u32, rows: u32, columns: u32) -> vec4<f32> {
    return left[element_index(LEFT, min(i, rows - 1u), min(j, columns - 1u) / 4u)];
}

fn right_vec4(i: u32, j: u32, rows: u32, columns: u32) -> vec4<f32> {
    return right[element_index(RIGHT, min(i, rows - 1u), min(j, columns - 1u) / 4u)];
}

// Four terms from k on: those that there are, and zeros.
fn known_terms(v: vec4<f32>, k: u32) -> vec4<f32> {
    return select(vec4(0.0), v, vec4(k, k + 1u, k + 2u, k + 3u) < vec4(params.terms));
}

// Where the operand lies along the terms: four of them of a row of the left one.
fn left_terms(row: u32, k: u32) -> vec4<f32> {
    return known_terms(left_vec4(row, k, params.rows, params.terms), k);
}

// Where it lies across them: a term of four rows.
fn left_rows(row: u32, k: u32) -> vec4<f32> {
    return select(vec4(0.0), left_vec4(k, row, params.terms, params.rows), k < params.terms);
}

// The same of the right operand: four terms of a column, or a term of four columns.
fn right_terms(k: u32, column: u32) -> vec4<f32> {
    return known_terms(right_vec4(column, k, params.columns, params.terms), k);
}

fn right_columns(k: u32, column: u32) -> vec4<f32> {
    return select(vec4(0.0), right_vec4(k, column, params.terms, params.columns), k < params.terms);
}

// Four terms of four columns: a vec4 of columns for each term.
fn right_square(k: u32, column: u32) -> Square {
    if RIGHT_ALONG_TERMS {
        return transposed(Square(
            right_terms(k, column), right_terms(k, column + 1u),
            right_terms(k, column + 2u), right_terms(k, column + 3u)));
    }
    return Square(
        right_columns(k, column), right_columns(k + 1u, column),
        right_columns(k + 2u, column), right_columns(k + 3u, column));
}

// What the sums of four columns of a row begin with.
fn start_of(row: u32, column: u32) -> vec4<f32> {
    if row >= params.rows || column >= params.columns {
        return vec4(0.0);
    }
    let last = min(params.columns - 1u - column, 3u);
    if params.has_bias != 0u {
        let i = element_index(BIAS, 0u, column) + min(vec4(0u, 1u, 2u, 3u), vec4(last));
        return vec4(bias[i.x], bias[i.y], bias[i.z], bias[i.w]);
    }
    if params.accumulates != 0u {
        return load_input(element_index(GRAD, row, column), 1u, last);
    }
    return vec4(0.0);
}

// Stores four columns of a row of the product, as far as there are such.
fn store_product(row: u32, column: u32, product: vec4<f32>) {
    if row < params.rows && column < params.columns {
        let last = min(params.columns - 1u - column, 3u);
        store_grad(element_index(GRAD, row, column), 1u, last, product);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn product(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    // those below one another follow one another, since they share what is larger: columns of the right operand
    let tiles_down = (params.rows + TILE_ROWS - 1u) / TILE_ROWS;
    if team.index >= tiles_down * params.tiles_across {
        return;
    }
    let across = team.index / tiles_down;
    let down = team.index - across * tiles_down;
    multiply(invocation, down * TILE_ROWS, across * TILE_COLUMNS);
}
