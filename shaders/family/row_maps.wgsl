// Maps of rows of classes (softmax, log_softmax): one team a row, its statistics
// (shared/row_form.wgsl), then its output or its gradient.
//
// Reads `input`, and `upstream` for gradients; writes `outputs` or `grad`, each element by one
// member of one team.
//
// With SPREAD, the amounts are the negated upstream gradient. Hooks, from the op's file:
//     fn output_of_four(statistics: Statistics, x: vec4<f32>) -> vec4<f32>
//     fn prepare(team: Team, row: Row, statistics: Statistics) -> vec2<f32>
//                                                what else the gradient needs to know of the row
//     fn map_gradient(statistics: Statistics, prepared: vec2<f32>, x: vec4<f32>, g: vec4<f32>)
//         -> vec4<f32>                           the gradient for upstream g

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
        return load_upstream(element_of(row, UPSTREAM, c), params.positions, last_of_four(c));
    }
    return vec4(1.0);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.rows {
        return;
    }
    let row = row_at(team.index);
    store_outputs(team, row, row_statistics(team, row));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.rows {
        return;
    }
    let row = row_at(team.index);
    store_map_gradient(team, row, row_statistics(team, row));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    let team = team_of(builtins);
    if team.index >= params.rows {
        return;
    }
    let row = row_at(team.index);
    let statistics = row_statistics(team, row);
    store_outputs(team, row, statistics);
    store_map_gradient(team, row, statistics);
}

fn store_outputs(team: Team, row: Row, statistics: Statistics) {
    let is_nan_row = (statistics.flags & HAS_NAN_LOGIT) != 0u;
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        let last = last_of_four(c);
        let x = load_input(element_of(row, INPUT, c), params.positions, last);
        let value = output_of_four(statistics, x);
        store_output(element_of(row, RESULTS, c), params.positions, last, select(value, vec4(nan()), is_nan_row));
    }
}

fn store_map_gradient(team: Team, row: Row, statistics: Statistics) {
    let is_nan_row = (statistics.flags & (HAS_NAN_LOGIT | HAS_NAN_AMOUNT)) != 0u;
    let prepared = prepare(team, row, statistics);
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        let last = last_of_four(c);
        let x = load_input(element_of(row, INPUT, c), params.positions, last);
        let g = map_gradient(statistics, prepared, x, load_row_upstream(row, c));
        store_grad(element_of(row, GRAD, c), params.positions, last, select(g, vec4(nan()), is_nan_row));
    }
}
