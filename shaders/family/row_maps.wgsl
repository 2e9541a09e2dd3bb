// Maps of rows of classes (softmax, log_softmax): one team a row, its statistics
// (shared/row_form.wgsl), then its output or its gradient.
//
// Reads `input`, and `upstream` for gradients; writes `outputs` or `grad`, each element by one
// member of one team.
//
// With SPREAD, the amounts are the negated upstream gradient. Hooks, from the op's file:
//     fn holds_exponentials() -> bool            as in shared/row_form.wgsl
//     fn output_of_four(k: u32, statistics: Statistics) -> vec4<f32>
//                                                the output of the k-th four held
//     fn prepare(team: Team, row: Row, statistics: Statistics) -> vec2<f32>
//                                                what else the gradient needs to know of the row
//     fn map_gradient(k: u32, statistics: Statistics, prepared: vec2<f32>, g: vec4<f32>)
//         -> vec4<f32>                           their gradient for upstream g

// Whether there is an upstream gradient; ones otherwise.
override HAS_UPSTREAM: bool = true;

fn amount(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(0.0);
    }
    return select(vec4(0.0), -load_row_upstream(row, c), valid);
}

fn load_row_upstream(row: Row, c: u32) -> vec4<f32> {
    if HAS_UPSTREAM {
        return load_upstream(element_of(row.beside, c), row.beside.step, last_of_four(c));
    }
    return vec4(1.0);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let statistics = row_statistics(team, row);
        for (var block = row.begin; !is_past_row(row, block); block += block_size(team)) {
            hold_again(team, row, block);
            store_outputs(team, row, block, statistics);
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let statistics = row_statistics(team, row);
        let prepared = prepare(team, row, statistics);
        for (var block = row.begin; !is_past_row(row, block); block += block_size(team)) {
            hold_again(team, row, block);
            store_map_gradient(team, row, block, statistics, prepared);
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_at(index, UPSTREAM);
        let statistics = row_statistics(team, row);
        let prepared = prepare(team, row, statistics);
        for (var block = row.begin; !is_past_row(row, block); block += block_size(team)) {
            hold_again(team, row, block);
            store_outputs(team, row, block, statistics);
            store_map_gradient(team, row, block, statistics, prepared);
        }
    }
}

fn hold_again(team: Team, row: Row, block: u32) {
    if !is_left_held(row, block) {
        hold_block(team, row, block);
    }
}

fn store_outputs(team: Team, row: Row, block: u32, statistics: Statistics) {
    let is_nan_row = (statistics.flags & HAS_NAN_LOGIT) != 0u;
    let output = span_of(row.line, row.position, RESULTS);
    for (var k = 0u; k < HELD; k += 1u) {
        let c = class_held(team, block, k);
        if c < params.classes {
            let value = select(output_of_four(k, statistics), vec4(nan()), is_nan_row);
            store_output(element_of(output, c), output.step, last_of_four(c), value);
        }
    }
}

fn store_map_gradient(
    team: Team, row: Row, block: u32, statistics: Statistics, prepared: vec2<f32>,
) {
    let is_nan_row = (statistics.flags & (HAS_NAN_LOGIT | HAS_NAN_AMOUNT)) != 0u;
    let grad = span_of(row.line, row.position, GRAD);
    for (var k = 0u; k < HELD; k += 1u) {
        let c = class_held(team, block, k);
        if c < params.classes {
            let g = map_gradient(k, statistics, prepared, load_row_upstream(row, c));
            let value = select(g, vec4(nan()), is_nan_row);
            store_grad(element_of(grad, c), grad.step, last_of_four(c), value);
        }
    }
}
