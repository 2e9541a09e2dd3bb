// Negative log-likelihood: of each row only the entry at the target is read. A team a row writes the
// gradient, which is 0 elsewhere.
//
// Takes row_of and row_scale from ops/cross_entropy.wgsl, whose amount is w[y] here. Writes
// `row_losses` and `grad`; rows of 16 bits may share words (storage/half.wgsl).

@group(0) @binding(6) var<storage, read_write> row_losses: array<f32>;

fn holds_exponentials() -> bool {
    // nothing is held
    return false;
}

fn store_picked_loss(team: Team, row: Row) {
    if team.member != 0u {
        return;
    }
    var loss = 0.0;
    if row.kind == ROW_BAD {
        loss = nan();
    }
    if row.kind == ROW_KEPT {
        let x = load_input_element(element_of(row.input, row.label));
        loss = select(-row.amount * x, 0.0, row.amount == 0.0);
        if is_nan(x) {
            loss = nan();
        }
    }
    row_losses[place(RESULTS, 0u, row.index)] = loss;
}

fn store_picked_gradient(team: Team, row: Row) {
    let scale = row_scale(row);
    var picked = annihilating_product(vec4(-row.amount), vec4(scale.value)).x;
    if scale.undefined || is_nan(scale.value) {
        picked = nan();
    }
    let grad = span_of(row.line, row.position, GRAD);
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        var g = vec4(0.0);
        if row.kind == ROW_BAD {
            g = vec4(nan());
        }
        if row.kind == ROW_KEPT {
            let is_picked = vec4(c, c + 1u, c + 2u, c + 3u) == vec4(row.label);
            g = select(vec4(0.0), vec4(picked), is_picked);
        }
        store_grad(element_of(grad, c), grad.step, last_of_four(c), g);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        store_picked_loss(team, row_of(index));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        store_picked_gradient(team, row_of(index));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_of(index);
        store_picked_loss(team, row);
        store_picked_gradient(team, row);
    }
}
