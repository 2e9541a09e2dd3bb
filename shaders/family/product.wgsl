// Products of matrices in f32: a team computes a tile of the result, whose sums stay in the registers of its
// members (product/).
//
//     out[i, j] = (0, or out[i, j])  + sum over k of left[i, k] right[k, j]  (+ bias[j])
//
// Each sum begins with what it is added to, and is taken in the order of its terms, in every file of product/. So the bits
// depend neither on the tile, nor on how the terms are divided among dispatches. The bias comes last, because a large one
// would take digits of the terms. Operands are read as vec4s: along the terms or across them, as the two overrides say.
//
//     LEFT_ALONG_TERMS  RIGHT_ALONG_TERMS    left             right
//     true              true                 [rows, terms]    [columns, terms]     hidden states, projection
//     true              false                [rows, terms]    [terms, columns]     gradient of logits, projection
//     false             false                [terms, rows]    [terms, columns]     gradient of logits, hidden states
//
// Every row of an operand begins at a multiple of four elements, and its last vec4 may be read whole: what
// lies past the last term counts as 0, and past the last row or column as whatever is there, which is not stored.
//
// What becomes of a tile is its epilogue: epilogue/store.wgsl stores it, epilogue/partials.wgsl finds what rows of
// logits need to know of it, so that they are not stored.
//
// Reads `left` and `right`, and `bias`.
//
// Hooks, from a file of epilogue/, beside its Params, which begin as ProductParams:
//     fn accumulates() -> bool       whether the sums begin with what is there
//     fn start_of(row: u32, column: u32) -> vec4<f32>
//                                    what the sums of four columns of a row begin with
//     fn finish_row(team: Team, row: u32, column: u32, product: vec4<f32>, next: u32, more: vec4<f32>)
//                                    takes eight columns of a row: four from each of the two numbers on

@group(0) @binding(1) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> right: array<vec4<f32>>;
// [columns]
@group(0) @binding(6) var<storage, read> bias: array<f32>;

const LEFT: u32 = 1u;
const RIGHT: u32 = 4u;
const BIAS: u32 = 6u;

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

// The bias of four columns, the last of which may not be.
fn bias_of(column: u32) -> vec4<f32> {
    if params.has_bias == 0u || column >= params.columns {
        return vec4(0.0);
    }
    let last = min(params.columns - 1u - column, 3u);
    let i = element_index(BIAS, 0u, column) + min(vec4(0u, 1u, 2u, 3u), vec4(last));
    return vec4(bias[i.x], bias[i.y], bias[i.z], bias[i.w]);
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
    multiply(team, invocation, down * TILE_ROWS, across * TILE_COLUMNS);
}
