// Losses of rows of classes: one team a row, its statistics (shared/row_form.wgsl) and then its
// gradient. Or several teams a row (SHARED): each sums its share in a dispatch of `sums`, and adds
// up all shares, in order, in that of the pass.
//
// Reads `input` (twice what is not held where the pass computes a gradient; once from a kept
// state), and what the op's file reads. Writes `grad`, `row_outputs` and `row_state`, each element
// by one member of one team; rows of 16 bits may share words (storage/half.wgsl).
//
// Hooks, from the op's file, beside that of shared/row_form.wgsl:
//     fn row_of(index: u32) -> Row               the row, and what its target says
//     fn row_scale(row: Row) -> RowScale         what the row's gradient is multiplied by

// Bits of f32 and i32: as floats, small integers might be flushed to 0. A loss a row; with
// ROW_OUTPUTS then a logsumexp a row, an argmax a row, and whether it is the target.
@group(0) @binding(6) var<storage, read_write> row_outputs: array<u32>;
// What forward keeps of a row; with SHARED what `sums` found of each share, two vectors a share.
@group(0) @binding(8) var<storage, read_write> row_state: array<vec4<f32>>;

// Whether forward keeps the row's state for backward.
override KEEP_STATE: bool = false;
// Whether forward tells more of a row than its loss, of ignored rows too.
override ROW_OUTPUTS: bool = false;
// Whether backward takes the row's state from forward.
override FROM_STATE: bool = false;
// Whether rows have several shares, a team each.
override SHARED: bool = false;

// Whether a gradient's dispatch has taken the row's sums itself.
fn sums_come_first() -> bool {
    return !FROM_STATE && !SHARED;
}

fn holds_exponentials() -> bool {
    // the slope of a cap is that at the number itself
    return FITS && sums_come_first() && !SOFTCAP;
}

// The i-th row; or the i-th share of all rows' shares.
fn share_of_row(i: u32) -> Row {
    if !SHARED {
        return row_of(i);
    }
    let index = i / params.shares;
    var row = row_of(index);
    row.begin = (i - index * params.shares) * params.share;
    row.end = min(row.begin + params.share, params.classes);
    return row;
}

fn place_of_share(row: Row, share: u32) -> u32 {
    return place(STATE, 0u, 2u * (row.index * params.shares + share));
}

// The sums of all shares, in order.
fn sums_of_shares(row: Row) -> Sums {
    var total = empty_partial();
    for (var share = 0u; share < params.shares; share += 1u) {
        let at = place_of_share(row, share);
        let first = row_state[at];
        let second = row_state[at + 1u];
        var other = empty_partial();
        other.m = first.x;
        other.below.x = first.y;
        other.at.x = u32(first.z);
        other.rest.x = first.w;
        other.top.x = second.x;
        other.gap.x = second.y;
        merge(&total, &other);
        total.flags |= u32(second.z);
    }
    return Sums(
        total.m, total.below.x, f32(total.at.x), total.rest.x, total.top.x, total.gap.x,
        total.flags);
}

// The statistics of a row whose only amount is at its target.
fn with_single_amount(bare: Statistics, row: Row) -> Statistics {
    var statistics = bare;
    let x = logits_of(vec4(load_input_element(element_of(row.input, row.label)))).x;
    statistics.top = select(0.0, row.amount, x == statistics.m);
    statistics.rest = select(row.amount, 0.0, x == statistics.m);
    if row.amount != 0.0 {
        if is_negative_infinity4(vec4(x)).x {
            statistics.flags |= select(HAS_NEGATIVE_COST, HAS_POSITIVE_COST, row.amount > 0.0);
        } else {
            statistics.gap = cost4(vec4(row.amount), statistics.m, vec4(x)).x;
        }
    }
    return statistics;
}

fn statistics_of(team: Team, row: Row) -> Statistics {
    if row.kind != ROW_KEPT && !ROW_OUTPUTS {
        return Statistics(0.0, 0.0, 0.0, 0.0, 0.0, select(0u, HAS_NAN_LOGIT, row.kind == ROW_BAD));
    }
    if FROM_STATE {
        let state = row_state[place(STATE, 0u, row.index)];
        let flags = select(0u, HAS_NAN_LOGIT, is_nan(state.x));
        return Statistics(state.x, state.y, state.z, state.w, 0.0, flags);
    }
    var sums: Sums;
    if SHARED {
        sums = sums_of_shares(row);
    } else {
        sums = row_sums(team, row);
    }
    let statistics = statistics_of_sums(sums);
    if SPREAD || row.kind != ROW_KEPT {
        return statistics;
    }
    return with_single_amount(statistics, row);
}

fn is_nan_row(statistics: Statistics) -> bool {
    return (statistics.flags & (HAS_NAN_LOGIT | HAS_NAN_AMOUNT)) != 0u;
}

fn loss_of(statistics: Statistics) -> f32 {
    if is_nan_row(statistics) {
        return nan();
    }
    switch statistics.flags & (HAS_POSITIVE_COST | HAS_NEGATIVE_COST) {
        case HAS_POSITIVE_COST: { return positive_infinity(); }
        case HAS_NEGATIVE_COST: { return -positive_infinity(); }
        // both: infinities of both signs have no sum
        case HAS_POSITIVE_COST | HAS_NEGATIVE_COST: { return nan(); }
        default: {
            let amounts = statistics.rest + statistics.top;
            let loss = amounts * log1p(statistics.s) + statistics.gap;
            if Z_LOSS {
                let z = logsumexp(statistics);
                return loss + params.z_loss * z * z;
            }
            return loss;
        }
    }
}

fn store_loss(team: Team, row: Row, statistics: Statistics) {
    var argmax = -1;
    if ROW_OUTPUTS {
        argmax = i32(first_at_max(team, row, statistics));
    }
    if team.member != 0u || row.begin != 0u {
        return;
    }
    var loss = loss_of(statistics);
    if row.kind != ROW_KEPT {
        loss = select(0.0, nan(), row.kind == ROW_BAD);
    }
    let at = place(RESULTS, 0u, row.index);
    row_outputs[at] = bitcast<u32>(loss);
    let is_nan_row = is_nan_row(statistics);
    if KEEP_STATE {
        let m = select(statistics.m, nan(), is_nan_row);
        row_state[place(STATE, 0u, row.index)] = vec4(m, statistics.s, statistics.rest, statistics.top);
    }
    if ROW_OUTPUTS {
        let has_nan_logit = (statistics.flags & HAS_NAN_LOGIT) != 0u;
        argmax = select(argmax, -1, has_nan_logit);
        let is_correct = row.kind == ROW_KEPT && argmax == i32(row.label);
        let i = at + params.rows;
        row_outputs[i] = bitcast<u32>(select(logsumexp(statistics), nan(), has_nan_logit));
        row_outputs[i + params.rows] = bitcast<u32>(argmax);
        row_outputs[i + 2u * params.rows] = select(0u, 1u, is_correct);
    }
}

fn store_gradient(team: Team, row: Row, statistics: Statistics) {
    let scale = row_scale(row);
    let is_undefined = is_nan_row(statistics) || row.kind == ROW_BAD || scale.undefined
        || is_nan(scale.value);
    let filled = is_undefined || row.kind == ROW_IGNORED;
    let filling = vec4(select(nan(), 0.0, row.kind == ROW_IGNORED));
    // Where no product overflows and no infinity meets a 0, the scale is multiplied in before: but at its
    // target, a row's gradient is a multiple of its exponentials.
    var gradient = row_gradient(statistics);
    let largest = max(abs(scale.value), max(abs(gradient.factor), abs(row.amount)));
    let is_multiple = !(SPREAD || SCALED || SOFTCAP || filled) && largest < 1e18;
    let before = select(1.0, scale.value, is_multiple);
    let after = select(scale.value, 1.0, is_multiple);
    gradient.factor *= before;
    gradient.at_max *= before;
    let grad = span_of(row.line, row.position, GRAD);
    for (var block = row.begin; !is_past_row(row, block); block += block_size(team)) {
        if !filled && !(sums_come_first() && is_left_held(row, block)) {
            hold_block(team, row, block);
        }
        for (var k = 0u; k < HELD; k += 1u) {
            let c = class_held(team, block, k);
            if c < params.classes {
                let e = exponentials(k, statistics.m);
                var g = e * gradient.factor;
                if !is_multiple || row.label - c < 4u {
                    let a = amount(row, c, valid_classes(c));
                    g = gradient_of_four(gradient, e, a * before);
                    if SCALED || SOFTCAP {
                        g *= slopes_of(held[k]);
                    }
                    g = select(annihilating_product(g, vec4(after)), filling, filled);
                }
                store_grad(element_of(grad, c), grad.step, last_of_four(c), g);
            }
        }
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = share_of_row(index);
        store_loss(team, row, statistics_of(team, row));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = share_of_row(index);
        store_gradient(team, row, statistics_of(team, row));
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = share_of_row(index);
        let statistics = statistics_of(team, row);
        store_loss(team, row, statistics);
        store_gradient(team, row, statistics);
    }
}

// What each team finds of its share of a row.
@compute @workgroup_size(WORKGROUP_SIZE)
fn sums(builtins: Builtins) {
    read_places();
    let team = team_of(builtins);
    let rows = rows_of(team);
    for (var index = rows.x; index < rows.y; index += 1u) {
        let row = share_of_row(index);
        if row.kind != ROW_KEPT {
            continue;
        }
        let found = row_sums(team, row);
        if team.member == 0u {
            let at = place_of_share(row, row.begin / params.share);
            row_state[at] = vec4(found.m, found.below, found.at, found.rest);
            row_state[at + 1u] = vec4(found.top, found.gap, f32(found.flags), 0.0);
        }
    }
}
