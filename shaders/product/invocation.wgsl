// Tiles of products by one invocation each, for software without subgroups.

const TILE_ROWS: u32 = 4u;
const TILE_COLUMNS: u32 = 4u;

// Four terms of four rows: a vec4 of terms for each row.
fn left_square(row: u32, k: u32) -> Square {
    var square: Square;
    for (var i = 0u; i < 4u; i += 1u) {
        if LEFT_ALONG_TERMS {
            square[i] = left_terms(row + i, k);
        } else {
            square[i] = left_rows(row, k + i);
        }
    }
    if LEFT_ALONG_TERMS {
        return square;
    }
    return transposed(square);
}

fn multiply(team: Team, invocation: Invocation, row: u32, column: u32) {
    var sums: Square;
    for (var i = 0u; i < 4u; i += 1u) {
        sums[i] = start_of(row + i, column);
    }
    for (var k = 0u; k < params.terms; k += 4u) {
        let terms = left_square(row, k);
        let square = right_square(k, column);
        for (var i = 0u; i < 4u; i += 1u) {
            for (var j = 0u; j < 4u; j += 1u) {
                sums[i] += terms[i][j] * square[j];
            }
        }
    }
    for (var i = 0u; i < 4u; i += 1u) {
        store_product(row + i, column, sums[i]);
    }
}
