// Negative log-likelihood: the loss gathers one entry of each row, that at the target. The gradient
// is 0 at all others. One team a row.
//
// Takes row_of and row_scale from ops/cross_entropy.wgsl, whose target weight is w[y] here. Reads
// `input` [rows, classes] at the targets, `class_indices` [rows] and `weight` [classes]; writes
// `row_losses` [rows] (member 0 of the row's team) and `grad` [rows, classes] (each vec4 by one
// member); rows of 16 bits may share words (storage/half.wgsl). No barriers.

// [rows]
@group(0) @binding(6) var<storage, read_write> row_losses: array<f32>;

// ops/cross_entropy.wgsl asks for this hook; no barrier depends on it here.
fn uniform_target(target_bits: vec3<u32>) -> vec3<u32> {
    return target_bits;
}

// shared/row_tiles.wgsl asks for this hook; no tile is loaded here.
fn tile_holds_exponentials() -> bool {
    return false;
}

fn store_gathered_loss(team: Team, row: Row) {
    if member != 0u {
        return;
    }
    var loss = 0.0;
    if row.kind == ROW_BAD {
        loss = nan();
    }
    if row.kind == ROW_KEPT {
        let x = load_input_element(class_index(row.input, row.label));
        loss = select(-row.target_weight * x, 0.0, row.target_weight == 0.0);
        if is_nan(x) {
            loss = nan();
        }
    }
    row_losses[element_index(RESULTS, 0u, row.index)] = loss;
}

fn store_scattered_gradient(team: Team, row: Row) {
    let scale = row_scale(row);
    var at_target = zero_wins(vec4(-row.target_weight), vec4(scale.value)).x;
    if scale.undefined || is_nan(scale.value) {
        at_target = nan();
    }
    let grad = span_of(row.outer_row, row.position, GRAD);
    for (var c = 4u * member; c < params.classes; c += 4u * team.size) {
        var g = vec4(0.0);
        if row.kind == ROW_BAD {
            g = vec4(nan());
        }
        if row.kind == ROW_KEPT {
            let is_target = vec4(c, c + 1u, c + 2u, c + 3u) == vec4(row.label);
            g = select(vec4(0.0), vec4(at_target), is_target);
        }
        store_grad(class_index(grad, c), grad.step, last_of_vec4(c), g);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        store_gathered_loss(team, row_of(index));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        store_scattered_gradient(team, row_of(index));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = row_of(index);
        store_gathered_loss(team, row);
        store_scattered_gradient(team, row);
    }
}
