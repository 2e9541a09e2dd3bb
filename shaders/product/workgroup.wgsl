// Tiles of products by workgroups of TILE_SIDE by TILE_SIDE members, for hardware GPUs: both operands' elements of
// eight terms lie in workgroup memory, where every member reads those of its eight rows and eight columns.
//
// Barriers: one before the elements of the next terms are written, because members may still read the last
// ones, and one after. TILE_SIDE is put in front of the text by the host, which knows the workgroup's memory.
// Ownership: a member writes other elements than its neighbours.

const TILE_ROWS: u32 = 8u * TILE_SIDE;
const TILE_COLUMNS: u32 = 8u * TILE_SIDE;
const TILE_TERMS: u32 = 8u;

var<workgroup> left_tile: array<f32, TILE_TERMS * TILE_ROWS>;
var<workgroup> right_tile: array<f32, TILE_TERMS * TILE_COLUMNS>;

// Four columns of eight rows.
alias Sums = array<vec4<f32>, 8>;

// Loads the elements of eight terms from k on: 16 TILE_SIDE vec4s of each operand.
fn load_tiles(row: u32, column: u32, k: u32) {
    for (var i = member; i < 16u * TILE_SIDE; i += TILE_SIDE * TILE_SIDE) {
        // of an operand along the terms, the half of a row; of one across them, a vec4 of a term
        let line = i / 2u;
        let half = 4u * (i % 2u);
        let term = i / (2u * TILE_SIDE);
        let across = 4u * (i % (2u * TILE_SIDE));
        if LEFT_ALONG_TERMS {
            let terms = left_terms(row + line, k + half);
            for (var j = 0u; j < 4u; j += 1u) {
                left_tile[(half + j) * TILE_ROWS + line] = terms[j];
            }
        } else {
            let rows = left_rows(row + across, k + term);
            for (var j = 0u; j < 4u; j += 1u) {
                left_tile[term * TILE_ROWS + across + j] = rows[j];
            }
        }
        if RIGHT_ALONG_TERMS {
            let terms = right_terms(k + half, column + line);
            for (var j = 0u; j < 4u; j += 1u) {
                right_tile[(half + j) * TILE_COLUMNS + line] = terms[j];
            }
        } else {
            let columns = right_columns(k + term, column + across);
            for (var j = 0u; j < 4u; j += 1u) {
                right_tile[term * TILE_COLUMNS + across + j] = columns[j];
            }
        }
    }
}

fn four_columns(i: u32) -> vec4<f32> {
    return vec4(right_tile[i], right_tile[i + 1u], right_tile[i + 2u], right_tile[i + 3u]);
}

fn multiply(team: Team, invocation: Invocation, first_row: u32, first_column: u32) {
    // a member's rows follow one another; its columns are two vec4s, half a tile apart
    let row = member / TILE_SIDE * 8u;
    let column = member % TILE_SIDE * 4u;
    let next = column + 4u * TILE_SIDE;
    var sums: Sums;
    var more: Sums;
    for (var i = 0u; i < 8u; i += 1u) {
        sums[i] = start_of(first_row + row + i, first_column + column);
        more[i] = start_of(first_row + row + i, first_column + next);
    }
    for (var k = 0u; k < params.terms; k += TILE_TERMS) {
        workgroupBarrier();
        load_tiles(first_row, first_column, k);
        workgroupBarrier();
        for (var term = 0u; term < TILE_TERMS; term += 1u) {
            let columns = four_columns(term * TILE_COLUMNS + column);
            let others = four_columns(term * TILE_COLUMNS + next);
            for (var i = 0u; i < 8u; i += 1u) {
                let number = left_tile[term * TILE_ROWS + row + i];
                sums[i] += number * columns;
                more[i] += number * others;
            }
        }
    }
    for (var i = 0u; i < 8u; i += 1u) {
        finish_row(
            team, first_row + row + i, first_column + column, sums[i], first_column + next, more[i]);
    }
}
