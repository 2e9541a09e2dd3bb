// Tiles of products by clusters of eight members (team/subgroup.wgsl), without barriers and without workgroup
// memory, for software devices. There the elements that a tile loads cost most, 32 of them as much as
// a hundred multiplications of eight lanes, and code of more than a few thousand instructions is slow to fetch: hence 32 by
// 64. Each member has eight columns of every row; of the left operand it loads eight terms' worth of other
// elements than its neighbours, which get them by shuffles.
//
// Every file of this folder defines TILE_ROWS, TILE_COLUMNS and multiply.

const TILE_ROWS: u32 = 32u;
const TILE_COLUMNS: u32 = 64u;
const MEMBERS: u32 = 8u;

// Four columns of eight rows.
alias Sums = array<vec4<f32>, 8>;

// Adds four terms of eight rows. `mine` is of this member's row, or of its term and quarter of the rows.
fn add_terms(
    sums: ptr<function, Sums>, more: ptr<function, Sums>,
    mine: vec4<f32>, first: u32, square: Square, other: Square,
) {
    if LEFT_ALONG_TERMS {
        for (var row = 0u; row < 8u; row += 1u) {
            let terms = subgroupShuffle(mine, first + row);
            for (var k = 0u; k < 4u; k += 1u) {
                (*sums)[row] += terms[k] * square[k];
                (*more)[row] += terms[k] * other[k];
            }
        }
        return;
    }
    for (var quarter = 0u; quarter < 2u; quarter += 1u) {
        for (var k = 0u; k < 4u; k += 1u) {
            let rows = subgroupShuffle(mine, first + 4u * quarter + k);
            for (var i = 0u; i < 4u; i += 1u) {
                (*sums)[4u * quarter + i] += rows[i] * square[k];
                (*more)[4u * quarter + i] += rows[i] * other[k];
            }
        }
    }
}

// What a member loads of eight rows and four terms.
fn share_of_left(row: u32, k: u32) -> vec4<f32> {
    if LEFT_ALONG_TERMS {
        return left_terms(row + member, k);
    }
    return left_rows(row + member / 4u * 4u, k + member % 4u);
}

fn multiply(team: Team, invocation: Invocation, row: u32, first_column: u32) {
    // the cluster's first member in its subgroup
    let first = invocation.index - member;
    let column = first_column + 4u * member;
    let next = column + 4u * MEMBERS;
    // arrays of arrays, so that loops load and store them: unrolled, they take longer to compile than all else
    var columns: array<Sums, 4>;
    var nexts: array<Sums, 4>;
    // as many as there are: a condition around a loop of TILE_ROWS would not keep lavapipe from unrolling it, nor from
    // running all of it with no lane
    let starts = select(0u, TILE_ROWS, accumulates());
    for (var i = 0u; i < starts; i += 1u) {
        columns[i / 8u][i % 8u] = start_of(row + i, column);
        nexts[i / 8u][i % 8u] = start_of(row + i, next);
    }
    var a = columns[0];
    var b = nexts[0];
    var c = columns[1];
    var d = nexts[1];
    var e = columns[2];
    var f = nexts[2];
    var g = columns[3];
    var h = nexts[3];
    for (var k = 0u; k < params.terms; k += 4u) {
        let square = right_square(k, column);
        let other = right_square(k, next);
        add_terms(&a, &b, share_of_left(row, k), first, square, other);
        add_terms(&c, &d, share_of_left(row + 8u, k), first, square, other);
        add_terms(&e, &f, share_of_left(row + 16u, k), first, square, other);
        add_terms(&g, &h, share_of_left(row + 24u, k), first, square, other);
    }
    columns = array(a, c, e, g);
    nexts = array(b, d, f, h);
    for (var i = 0u; i < TILE_ROWS; i += 1u) {
        finish_row(team, row + i, column, columns[i / 8u][i % 8u], next, nexts[i / 8u][i % 8u]);
    }
}
