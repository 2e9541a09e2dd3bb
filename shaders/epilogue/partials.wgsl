// Products that are logits, of which only the partials of rows are stored: a tile's columns are a share of a row's
// classes, as a device's are in a shard, and family/rows.wgsl merges what tiles tell (shared/row_state.wgsl). Target
// weights are those of ops/cross_entropy.wgsl.
//
// Reads `class_indices` [rows] and `weight` [columns] (shared/classes.wgsl). Writes `row_partials` [rows, shares, 2]: a
// partial by one member of the team.
//
// Hook, from a file of product_rows/:
//     fn partial_of_row(team: Team, columns: Columns) -> RowPartial
//                                    merges what members know of a row, for the first of them

struct Params {
    offsets: array<vec4<u32>, 9>,
    rows: u32,
    columns: u32,
    terms: u32,
    // how many tiles lie side by side
    tiles_across: u32,
    has_bias: u32,
    // what follows is as in shared/row_tiles.wgsl, but for `first_share`, the share of the first tile, and `classes`, which
    // are the columns
    first_share: u32,
    shares: u32,
    classes: u32,
    first_class: u32,
    total_classes: u32,
    ignore_index: i32,
    confidence: f32,
    smoothing: f32,
    scale: f32,
    softcap: f32,
    z_loss: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(8) var<storage, read_write> row_partials: array<vec4<f32>>;

// Whether each row's largest class is asked for.
override ROW_OUTPUTS: bool = false;

fn accumulates() -> bool {
    return false;
}

fn start_of(row: u32, column: u32) -> vec4<f32> {
    return vec4(0.0);
}

// Eight columns of a row, of one member.
struct Columns {
    column: u32,
    next: u32,
    // their logits: -inf past the last
    x: vec4<f32>,
    more: vec4<f32>,
    // their target weights
    a: vec4<f32>,
    b: vec4<f32>,
    has_nan: bool,
    // whether anybody asks for the row's partial
    is_asked: bool,
}

fn are_columns(column: u32) -> vec4<bool> {
    return vec4(column, column + 1u, column + 2u, column + 3u) < vec4(params.columns);
}

fn known_columns(column: u32, product: vec4<f32>) -> vec4<f32> {
    return select(
        vec4(-positive_infinity()), product + bias_of(column), are_columns(column));
}

// What the row's class indices say of four columns.
fn target_weights_of(column: u32, label: u32, target_weight: f32) -> vec4<f32> {
    let is_target = vec4(label - column) == vec4(0u, 1u, 2u, 3u);
    let a = params.smoothing * class_weights(column) + select(vec4(0.0), vec4(target_weight), is_target);
    return select(vec4(0.0), a, are_columns(column));
}

fn columns_of(
    row: u32, column: u32, product: vec4<f32>, next: u32, more: vec4<f32>,
) -> Columns {
    let target_class =
        label_of_row(min(row, params.rows - 1u), params.ignore_index, params.total_classes);
    // of another tile's class, the number is larger than any column
    let label = u32(target_class.index) - params.first_class;
    var target_weight = 0.0;
    if target_class.kind == ROW_KEPT && label < params.columns {
        target_weight = params.confidence * class_weight(label);
    }
    let x = known_columns(column, product);
    let y = known_columns(next, more);
    let extremes = with_extremes(with_extremes(no_extremes(), x), y);
    return Columns(
        column, next, logits_of(x), logits_of(y),
        target_weights_of(column, label, target_weight),
        target_weights_of(next, label, target_weight), has_nan_or_positive_infinity(extremes),
        target_class.kind == ROW_KEPT || ROW_OUTPUTS);
}

fn largest_of(columns: Columns) -> f32 {
    let largest = max(columns.x, columns.more);
    return max(LOWEST, max(max(largest.x, largest.y), max(largest.z, largest.w)));
}

// The partial of a member's columns, relative to a maximum m that is at least theirs.
fn partial_of_columns(columns: Columns, m: f32) -> RowPartial {
    var partial = empty_partial();
    partial.m = m;
    add_vec4(&partial, columns.x, exp_nonpositive(relative4(columns.x, m)), columns.a);
    add_vec4(&partial, columns.more, exp_nonpositive(relative4(columns.more, m)), columns.b);
    return partial_of_lanes(partial);
}

// The first class at m among a member's columns; as many as there are classes in all where there is none.
fn first_of_columns(columns: Columns, m: f32) -> u32 {
    let numbers = vec4(0u, 1u, 2u, 3u) + params.first_class;
    let none = vec4(params.total_classes);
    let first = min(
        select(none, columns.column + numbers, columns.x == vec4(m)),
        select(none, columns.next + numbers, columns.more == vec4(m)));
    return min(min(first.x, first.y), min(first.z, first.w));
}

fn finish_row(
    team: Team, row: u32, column: u32, product: vec4<f32>, next: u32, more: vec4<f32>,
) {
    let columns = columns_of(row, column, product, next, more);
    var partial = partial_of_row(team, columns);
    if !columns.is_asked {
        partial = empty_row_partial();
    }
    if is_first_of_row() && row < params.rows {
        let packed = pack_partial(partial);
        let share = params.first_share + column / TILE_COLUMNS;
        let i = element_index(STATE, 0u, 2u * (row * params.shares + share));
        row_partials[i] = packed.a;
        row_partials[i + 1u] = packed.b;
    }
}
