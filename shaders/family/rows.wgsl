// Losses of rows of classes, and their gradients: one team a row, or several teams a row where rows
// are few and long (SPLIT_ROWS).
//
// The algorithm. A team has M members; member i of a team holds TILE_VEC4S vec4s of each tile. All
// of a team's members do this together; "for k" means the vec4s of a member's own part of the tile.
//
//     forward_backward(row):                        (forward and backward are each a part of it)
//         stats = stats_of_row(row)
//         store_loss(row, stats)                    member 0 writes
//         store_gradient(row, stats)                each member writes what it loads
//
//     stats_of_row(row):
//         if the row is ignored or its class is out of range: nothing is read
//         if forward has kept the row's state: take it, and read nothing
//         if partials of the row are in memory: merge them, in order, with their targets
//         otherwise: partial = partial_of_classes(row)
//
//     partial_of_classes(row):
//         partial = row_partial(row)
//         unless DENSE_TARGET: read the logit at the target, and add its weight
//         if row outputs are asked for: find the first class at the maximum
//
//     row_partial(row):                             (shared/row_tiles.wgsl) the row's first read
//         total = empty
//         for groups of tiles, so that no sum takes more than some 64 additions:
//             partial = empty
//             for each tile of the group:           last to first if REVERSE, else first to last
//                 for k: tile[k] = load(row)
//                 m = largest logit of the member's part of the tile
//                 if ROW_IN_REGISTERS: partial.m = team_max(m)       the row's maximum at once
//                 else: rescale(partial, m)                          the member's maximum so far
//                 for k: add_vec4(partial, tile[k], e^(tile[k] - partial.m), target weights)
//                        tile[k] = e^(tile[k] - partial.m), if tile_holds_exponentials
//             merge(total, partial)
//         rescale(total, team_max(total.m)), unless ROW_IN_REGISTERS
//         add up the four lanes of each sum, then the team's members (team/)
//
//     store_gradient(row, stats):
//         for each tile, first to last:
//             if it is not in registers: for k: tile[k] = load(row)  the second read of the row
//             for k: e = e^(tile[k] - m)
//                    g = e * factor - target weights, but at a lone maximum (shared/row_state.wgsl)
//                    store g * slope * scale
//
// What stays in registers between the two walks: all of the row with ROW_IN_REGISTERS, which is
// then read once; the first tile of a longer row with REVERSE; otherwise nothing. So a long row
// costs two reads and a write, less the tile kept and what caches give.
//
// Split rows take two dispatches. In that of `partials`, each team finds the partial of one split
// and writes it to row_state. In that of the pass, every team of a row merges the partials of all
// of its splits in the same order, and so comes to the same bits. Then it writes the gradient of
// its own split, and the first split's team writes the loss.
//
// Partials may also come from elsewhere: from the tiles of a product (epilogue/partials.wgsl), or
// from other devices, each of which has a shard of the classes. A pass merges them likewise, and
// its own classes are params.first_class and those after it, of params.total_classes. The entry
// point `merge_partials` writes one partial a row in their place, for other devices.
//
// Reads `input` [rows, classes], and what the op's file and the upstream's do. Writes `grad`
// [rows, classes], `row_outputs` [1 or 5, rows] and `row_state`, each element by one member of one team; rows of 16 bits may share words (storage/half.wgsl). No barriers but
// those of team/ and uniform/.
//
// Hooks, from the op's file, beside that of shared/row_tiles.wgsl:
//     fn row_of(index: u32) -> Row               the row, and what its target says
//     fn row_scale(row: Row) -> RowScale         what the row's gradient is multiplied by
//
// Overrides: those below, and those of shared/row_tiles.wgsl and shared/row_state.wgsl.

// [1 or 5, rows]: each row's loss; with ROW_OUTPUTS then each row's logsumexp, argmax, and whether
// that is the target, and each row's entropy; and with partials then
// each row's state, [rows, 4]; or [rows, 8], a partial a row. Bits of f32
// and i32, because small integers as floats might be flushed to 0.
@group(0) @binding(6) var<storage, read_write> row_outputs: array<u32>;
// [rows], the state (m, denom_minus_1, target_below, target_at_max) that forward keeps of each
// row; or with FROM_PARTIALS [rows, shares, 2], the packed partials of each row.
@group(0) @binding(8) var<storage, read_write> row_state: array<vec4<f32>>;

// Whether forward keeps the row's state for backward.
override KEEP_STATE: bool = false;
// Whether forward writes more of a row than its loss, also of ignored rows.
override ROW_OUTPUTS: bool = false;
// Whether backward takes the row's state from forward.
override FROM_STATE: bool = false;
// Whether rows are split, and each split has a team.
override SPLIT_ROWS: bool = false;

// Whether the dispatch that writes the gradient has found the row's partial by itself, and so has a
// tile in registers.
fn finds_partial() -> bool {
    return !FROM_STATE && !FROM_PARTIALS;
}

fn tile_holds_exponentials() -> bool {
    // the gradient under a cap needs its slope, which is that at the number itself
    return ROW_IN_REGISTERS && finds_partial() && !SOFTCAP;
}

// The i-th row; or with SPLIT_ROWS the i-th split, counted over the splits of all rows.
fn split_of_row(i: u32) -> Row {
    if !SPLIT_ROWS {
        return row_of(i);
    }
    let index = i / params.splits;
    var row = row_of(index);
    row.begin = (i - index * params.splits) * params.classes_per_split;
    row.end = min(row.begin + params.classes_per_split, params.classes);
    return row;
}

// Where a partial of a row is in row_state.
fn partial_index(row: u32, share: u32) -> u32 {
    return element_index(STATE, 0u, 2u * (row * params.shares + share));
}

// The partial of a row from those in memory, in order.
fn merged_partial(row: u32) -> RowPartial {
    var total = empty_partial();
    for (var share = 0u; share < params.shares; share += 1u) {
        let i = partial_index(row, share);
        let packed = PackedPartial(row_state[i], row_state[i + 1u]);
        var other = lanes_of_partial(unpack_partial(packed));
        merge(&total, &other);
    }
    return partial_of_lanes(total);
}

// The partial of the team's classes, with what the target is to them.
fn partial_of_classes(team: Team, row: Row) -> RowPartial {
    var partial = row_partial(team, row);
    if ROW_OUTPUTS {
        partial.first_at_max = params.first_class + first_at_max(team, row, partial.m);
    }
    if DENSE_TARGET || row.kind != ROW_KEPT || row.label - row.begin >= row.end - row.begin {
        return partial;
    }
    let x = logits_of(vec4(load_input_element(class_index(row.input, row.label)))).x;
    return with_single_target(partial, row.target_weight, x);
}

fn stats_of_row(team: Team, row: Row) -> RowStats {
    if row.kind != ROW_KEPT && !ROW_OUTPUTS {
        return RowStats(
            0.0, 0.0, 0.0, 0.0, 0.0, select(0u, HAS_NAN_LOGIT, row.kind == ROW_BAD), 0u, 0.0);
    }
    if FROM_STATE {
        let state = row_state[element_index(STATE, 0u, row.index)];
        let flags = select(0u, HAS_NAN_LOGIT, is_nan(state.x));
        return RowStats(state.x, state.y, state.z, state.w, 0.0, flags, 0u, 0.0);
    }
    if FROM_PARTIALS {
        return stats_of_partial(merged_partial(row.index));
    }
    return stats_of_partial(partial_of_classes(team, row));
}

fn store_loss(row: Row, stats: RowStats) {
    if member != 0u || row.begin != 0u {
        return;
    }
    var loss = loss_of(stats);
    if row.kind != ROW_KEPT {
        loss = select(0.0, nan(), row.kind == ROW_BAD);
    }
    let i = element_index(RESULTS, 0u, row.index);
    row_outputs[i] = bitcast<u32>(loss);
    let is_nan_row = is_nan_row(stats);
    if KEEP_STATE {
        let m = select(stats.m, nan(), is_nan_row);
        let state = vec4(m, stats.denom_minus_1, stats.target_below, stats.target_at_max);
        if FROM_PARTIALS {
            // partials lie where states would; so these follow all rows' results
            let first = element_index(RESULTS, 0u, select(1u, 5u, ROW_OUTPUTS) * params.rows);
            for (var k = 0u; k < 4u; k += 1u) {
                row_outputs[first + 4u * row.index + k] = bitcast<u32>(state[k]);
            }
        } else {
            row_state[element_index(STATE, 0u, row.index)] = state;
        }
    }
    if ROW_OUTPUTS {
        let has_nan_logit = (stats.flags & HAS_NAN_LOGIT) != 0u;
        let argmax = select(i32(stats.first_at_max), -1, has_nan_logit);
        // a label is counted from the first class of this device
        let is_correct = row.kind == ROW_KEPT && !has_nan_logit
            && stats.first_at_max - params.first_class == row.label;
        let second = i + params.rows;
        row_outputs[second] = bitcast<u32>(select(logsumexp(stats), nan(), has_nan_logit));
        row_outputs[second + params.rows] = bitcast<u32>(argmax);
        row_outputs[second + 2u * params.rows] = select(0u, 1u, is_correct);
        let entropy = select(entropy(stats), nan(), has_nan_logit);
        row_outputs[second + 3u * params.rows] = bitcast<u32>(entropy);
    }
}

fn store_gradient(team: Team, row: Row, stats: RowStats) {
    let scale = row_scale(row);
    let is_undefined = is_nan_row(stats) || row.kind == ROW_BAD || scale.undefined
        || is_nan(scale.value);
    // a row whose gradient is 0 or NaN everywhere is filled, and not read
    let filled = is_undefined || row.kind == ROW_IGNORED;
    let filling = vec4(select(nan(), 0.0, row.kind == ROW_IGNORED));
    // Fast path: away from the target the gradient is scale * factor * e. So the scale is folded
    // into the factor, where no product can overflow or be 0 times an infinity.
    var gradient = row_gradient(stats);
    let largest = max(abs(scale.value), max(abs(gradient.factor), abs(row.target_weight)));
    let is_multiple = !(DENSE_TARGET || SCALED || SOFTCAP || filled) && largest < 1e18;
    let before = select(1.0, scale.value, is_multiple);
    let after = select(scale.value, 1.0, is_multiple);
    gradient.factor *= before;
    gradient.at_max *= before;
    let grad = span_of(row.outer_row, row.position, GRAD);
    for (var start = row.begin; !is_past_row(row, start); start += tile_size(team)) {
        if !filled && !(finds_partial() && is_left_in_registers(row, start)) {
            load_tile(team, row, start);
        }
        for (var k = 0u; k < TILE_VEC4S; k += 1u) {
            let c = tile_class(team, start, k);
            if c < params.classes {
                let e = exponentials(k, stats.m);
                var g = e * gradient.factor;
                if !is_multiple || row.label - c < 4u {
                    let a = target_weights(row, c, valid_classes(c));
                    g = gradient_of_vec4(gradient, e, a * before);
                    if SCALED || SOFTCAP {
                        g *= slopes_of(tile[k]);
                    }
                    g = select(zero_wins(g, vec4(after)), filling, filled);
                }
                store_grad(class_index(grad, c), grad.step, last_of_vec4(c), g);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = split_of_row(index);
        store_loss(row, stats_of_row(team, row));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = split_of_row(index);
        store_gradient(team, row, stats_of_row(team, row));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = split_of_row(index);
        let stats = stats_of_row(team, row);
        store_loss(row, stats);
        store_gradient(team, row, stats);
    }
}

// The partial of each split.
@compute @workgroup_size(WORKGROUP_SIZE)
fn partials(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = split_of_row(index);
        var packed = pack_partial(empty_row_partial());
        if row.kind == ROW_KEPT || ROW_OUTPUTS {
            packed = pack_partial(partial_of_classes(team, row));
        }
        if member == 0u {
            let i = partial_index(row.index, row.begin / params.classes_per_split);
            row_state[i] = packed.a;
            row_state[i + 1u] = packed.b;
        }
    }
}

// One partial a row, from those in memory.
@compute @workgroup_size(WORKGROUP_SIZE)
fn merge_partials(workgroup: Workgroup, invocation: Invocation) {
    read_offsets();
    let team = team_of(workgroup, invocation);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        // what the row's target says, for the report of a class that is out of range
        let row = row_of(index);
        let packed = pack_partial(merged_partial(row.index));
        if member == 0u {
            let i = element_index(RESULTS, 0u, 8u * index);
            for (var k = 0u; k < 4u; k += 1u) {
                row_outputs[i + k] = bitcast<u32>(packed.a[k]);
                row_outputs[i + 4u + k] = bitcast<u32>(packed.b[k]);
            }
        }
    }
}
