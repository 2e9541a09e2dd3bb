// Maps of rows of classes (softmax, log_softmax): one team a row. It finds the row's statistics
// (shared/row_tiles.wgsl), then writes the output or the gradient tile by tile, reading again
// what is not in registers.
//
// Reads `input` and, for gradients, `upstream` [rows, classes]; writes `outputs` or `grad`
// [rows, classes], each element by one member of one team. No barriers but those of team/.
//
// With DENSE_TARGET, the target weights are the negated upstream gradient. Hooks, from the op's
// file:
//     fn tile_holds_exponentials() -> bool       as in shared/row_tiles.wgsl
//     fn output_of_vec4(k: u32, stats: RowStats) -> vec4<f32>
//                                                the output at the k-th vec4 of the tile
//     fn prepare(team: Team, row: Row, stats: RowStats) -> vec2<f32>
//                                                what else the gradient needs to know of the row
//     fn map_gradient(k: u32, stats: RowStats, prepared: vec2<f32>, g: vec4<f32>) -> vec4<f32>
//                                                the gradient there, for upstream gradients g

fn target_weights(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(0.0);
    }
    return select(vec4(0.0), -load_row_upstream(row, c), valid);
}

fn load_row_upstream(row: Row, c: u32) -> vec4<f32> {
    return load_upstream(class_index(row.aligned, c), row.aligned.step, last_of_vec4(c));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let stats = row_stats(team, row);
        for (var start = row.begin; !is_past_row(row, start); start += tile_size(team)) {
            reload_tile(team, row, start);
            store_outputs(team, row, start, stats);
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let stats = row_stats(team, row);
        let prepared = prepare(team, row, stats);
        for (var start = row.begin; !is_past_row(row, start); start += tile_size(team)) {
            reload_tile(team, row, start);
            store_map_gradient(team, row, start, stats, prepared);
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let stats = row_stats(team, row);
        let prepared = prepare(team, row, stats);
        for (var start = row.begin; !is_past_row(row, start); start += tile_size(team)) {
            reload_tile(team, row, start);
            store_outputs(team, row, start, stats);
            store_map_gradient(team, row, start, stats, prepared);
        }
    }
}

// Loads a tile again, unless it is still in registers.
fn reload_tile(team: Team, row: Row, start: u32) {
    if !is_left_in_registers(row, start) {
        load_tile(team, row, start);
    }
}

fn store_outputs(team: Team, row: Row, start: u32, stats: RowStats) {
    let is_nan_row = (stats.flags & HAS_NAN_LOGIT) != 0u;
    let output = span_of(row.outer_row, row.position, RESULTS);
    for (var k = 0u; k < TILE_VEC4S; k += 1u) {
        let c = tile_class(team, start, k);
        if c < params.classes {
            let value = select(output_of_vec4(k, stats), vec4(nan()), is_nan_row);
            store_output(class_index(output, c), output.step, last_of_vec4(c), value);
        }
    }
}

fn store_map_gradient(
    team: Team, row: Row, start: u32, stats: RowStats, prepared: vec2<f32>,
) {
    let is_nan_row = (stats.flags & (HAS_NAN_LOGIT | HAS_NAN_TARGET)) != 0u;
    let grad = span_of(row.outer_row, row.position, GRAD);
    for (var k = 0u; k < TILE_VEC4S; k += 1u) {
        let c = tile_class(team, start, k);
        if c < params.classes {
            let g = map_gradient(k, stats, prepared, load_row_upstream(row, c));
            let value = select(g, vec4(nan()), is_nan_row);
            store_grad(class_index(grad, c), grad.step, last_of_vec4(c), value);
        }
    }
}
