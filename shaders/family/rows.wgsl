// Rows of classes: one team a row, its statistics and then its gradient.
//
// Reads `input` (twice where the pass computes a gradient; once from a kept state), and what the
// op's file reads. Writes `grad`, `row_losses` and `row_state`, each element by one member of one
// team: rows never share a word.
//
// Hooks, from the op's file:
//     fn row_target(row: u32) -> RowTarget       what the row's target says
//     fn amount(t: RowTarget, c: u32, valid: vec4<bool>) -> vec4<f32>
//                                                a[c], ..., a[c + 3]: what multiplies -ln p[c]
//     fn row_scale(row: u32) -> RowScale         what the row's gradient is multiplied by
//
// The row form. Let m be the row's largest logit. What lies strictly below m is kept apart from
// what lies at m, so that a confident row loses no digits:
//     below = sum over x[c] < m of e^(x[c] - m)           at   = how many classes lie at m
//     rest  = sum over x[c] < m of a[c]                   top  = sum over x[c] = m of a[c]
//     gap   = sum of a[c] (m - x[c])
//     s     = below + (at - 1)
//     loss  = (rest + top) log1p(s) + gap
//     grad[c] = p[c] (rest + top) - a[c], and for a maximum without a near rival, where that
//               cancels, (rest - s top) / (1 + s)

struct Params {
    rows: u32,
    classes: u32,
    // classes of a row are this far apart; so are rows of neighbouring positions 1 apart
    positions: u32,
    ignore_index: i32,
    // 1 - label smoothing
    confidence: f32,
    // label smoothing / classes
    smoothing: f32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(6) var<storage, read_write> row_losses: array<f32>;
@group(0) @binding(8) var<storage, read_write> row_state: array<vec4<f32>>;

// Whether a[c] varies over classes (label smoothing). Otherwise it is one amount at the target, and
// the sums of amounts need no loop.
override SPREAD: bool = false;
// Whether forward keeps the row's state for backward.
override KEEP_STATE: bool = false;
// Whether backward takes the row's state from forward.
override FROM_STATE: bool = false;

// What a row's target says about it.
struct RowTarget {
    // ROW_KEPT, ROW_IGNORED or ROW_BAD (shared/classes.wgsl)
    kind: u32,
    label: u32,
    // the amount at that class, beyond what is spread over all classes
    amount: f32,
}

struct RowScale {
    value: f32,
    // the mean over rows whose weights sum to 0
    undefined: bool,
}

struct Statistics {
    m: f32,
    s: f32,
    rest: f32,
    top: f32,
    gap: f32,
    // HAS_*
    flags: u32,
}

const HAS_NAN: u32 = 1u;
// -inf logits that cost something, by the sign of what they cost
const HAS_POSITIVE_COST: u32 = 2u;
const HAS_NEGATIVE_COST: u32 = 4u;

// The element of `input` at class 0 of a row.
fn row_start(row: u32) -> u32 {
    let batch = row / params.positions;
    return batch * params.classes * params.positions + (row - batch * params.positions);
}

// Four classes from c on; what lies past the row's end is -inf.
fn load_logits(start: u32, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(-positive_infinity());
    }
    let last = min(params.classes - 1u - c, 3u);
    let x = load_input(start + c * params.positions, params.positions, last);
    return select(vec4(-positive_infinity()), x, valid);
}

fn valid_classes(c: u32) -> vec4<bool> {
    return vec4(c, c + 1u, c + 2u, c + 3u) < vec4(params.classes);
}

// Sums over the part of a row that one member has seen, relative to its maximum so far.
struct Partial {
    m: f32,
    below: vec4<f32>,
    at: vec4<f32>,
    rest: vec4<f32>,
    top: vec4<f32>,
    gap: vec4<f32>,
    // the largest nan_or_positive_infinity_key
    key: vec4<u32>,
    flags: u32,
}

fn empty_partial() -> Partial {
    return Partial(
        LOWEST, vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0u), 0u);
}

// Moves a partial's maximum up to m: what was at the maximum is below it now.
fn raise(partial: ptr<function, Partial>, m: f32) {
    let moved = m > (*partial).m;
    let factor = exp_nonpositive(vec4(min((*partial).m - m, 0.0))).x;
    (*partial).below =
        select((*partial).below, ((*partial).below + (*partial).at) * factor, moved);
    (*partial).at = select((*partial).at, vec4(0.0), moved);
    if SPREAD {
        let amounts = (*partial).rest + (*partial).top;
        // amounts of 0 gain nothing, even where the distance overflows
        let gain = select(amounts * (m - (*partial).m), vec4(0.0), amounts == vec4(0.0));
        (*partial).gap += select(vec4(0.0), gain, moved);
        (*partial).rest = select((*partial).rest, amounts, moved);
        (*partial).top = select((*partial).top, vec4(0.0), moved);
    }
    (*partial).m = max((*partial).m, m);
}

fn add_four(
    partial: ptr<function, Partial>, t: RowTarget, x: vec4<f32>, c: u32, valid: vec4<bool>,
) {
    let is_max = x == vec4((*partial).m);
    (*partial).below += select(exp_nonpositive(x - (*partial).m), vec4(0.0), is_max);
    (*partial).at += select(vec4(0.0), vec4(1.0), is_max);
    if SPREAD {
        let a = amount(t, c, valid);
        (*partial).top += select(vec4(0.0), a, is_max);
        (*partial).rest += select(a, vec4(0.0), is_max);
        let masked = is_negative_infinity4(x);
        let costs = a != vec4(0.0);
        // a class at the maximum adds 0; one at -inf is told by its flag
        (*partial).gap += select(a * ((*partial).m - x), vec4(0.0), masked | !costs);
        (*partial).flags |= select(0u, HAS_POSITIVE_COST, any(masked & (a > vec4(0.0))));
        (*partial).flags |= select(0u, HAS_NEGATIVE_COST, any(masked & (a < vec4(0.0))));
    }
}

// Adds what `other` has seen.
fn merge(partial: ptr<function, Partial>, other: ptr<function, Partial>) {
    raise(partial, (*other).m);
    raise(other, (*partial).m);
    (*partial).below += (*other).below;
    (*partial).at += (*other).at;
    if SPREAD {
        (*partial).rest += (*other).rest;
        (*partial).top += (*other).top;
        (*partial).gap += (*other).gap;
        (*partial).flags |= (*other).flags;
    }
}

// Sixteen elements are rescaled together, and sixteen such blocks summed apart, so that no
// accumulator takes many additions.
const BLOCK: u32 = 16u;
const CHUNK_BLOCKS: u32 = 16u;

fn row_statistics(team: Team, start: u32, t: RowTarget) -> Statistics {
    // four loads of a member lie as far apart as the team is wide: neighbours read neighbours
    let stride = 4u * team.size;
    let block_stride = BLOCK * team.size;
    var total = empty_partial();
    var key = vec4(0u);
    for (var chunk = 0u; chunk < params.classes; chunk += CHUNK_BLOCKS * block_stride) {
        var partial = empty_partial();
        let end = min(params.classes, chunk + CHUNK_BLOCKS * block_stride);
        for (var c = chunk + 4u * team.member; c < end; c += block_stride) {
            let c1 = c + stride;
            let c2 = c1 + stride;
            let c3 = c2 + stride;
            let v0 = valid_classes(c);
            let v1 = valid_classes(c1);
            let v2 = valid_classes(c2);
            let v3 = valid_classes(c3);
            let x0 = load_logits(start, c, v0);
            let x1 = load_logits(start, c1, v1);
            let x2 = load_logits(start, c2, v2);
            let x3 = load_logits(start, c3, v3);
            key = max(key, max(
                max(nan_or_positive_infinity_key(x0), nan_or_positive_infinity_key(x1)),
                max(nan_or_positive_infinity_key(x2), nan_or_positive_infinity_key(x3))));
            let most = max(max(x0, x1), max(x2, x3));
            raise(&partial, max(max(most.x, most.y), max(most.z, most.w)));
            add_four(&partial, t, x0, c, v0);
            add_four(&partial, t, x1, c1, v1);
            add_four(&partial, t, x2, c2, v2);
            add_four(&partial, t, x3, c3, v3);
        }
        merge(&total, &partial);
    }

    let m = team_max(team, total.m);
    raise(&total, m);
    let masses = team_sum(team, vec4(
        add_up(total.below), add_up(total.at), add_up(total.rest), add_up(total.top)));
    var gap = 0.0;
    if SPREAD {
        gap = team_sum(team, vec4(add_up(total.gap))).x;
    }
    let has_nan = max(max(key.x, key.y), max(key.z, key.w)) > NAN_OR_POSITIVE_INFINITY;
    var flags = team_or(team, total.flags | select(0u, HAS_NAN, has_nan));
    // nothing at the maximum: nothing but -inf
    flags |= select(0u, HAS_NAN, masses.y == 0.0);

    // the count minus one as integers: as floats, a compiler may add the count to the rest first
    let s = masses.x + f32(u32(masses.y) - 1u);
    if SPREAD {
        return Statistics(m, s, masses.z, masses.w, gap, flags);
    }
    return with_single_amount(Statistics(m, s, 0.0, 0.0, 0.0, flags), start, t);
}

// The statistics of a row whose only amount is at its target.
fn with_single_amount(bare: Statistics, start: u32, t: RowTarget) -> Statistics {
    var row = bare;
    let x = load_input_element(start + t.label * params.positions);
    row.top = select(0.0, t.amount, x == row.m);
    row.rest = select(t.amount, 0.0, x == row.m);
    if t.amount != 0.0 {
        if is_negative_infinity4(vec4(x)).x {
            row.flags |= select(HAS_NEGATIVE_COST, HAS_POSITIVE_COST, t.amount > 0.0);
        } else {
            row.gap = t.amount * (row.m - x);
        }
    }
    return row;
}

fn statistics_of(team: Team, row: u32, start: u32, t: RowTarget) -> Statistics {
    if t.kind != ROW_KEPT {
        return Statistics(0.0, 0.0, 0.0, 0.0, 0.0, select(0u, HAS_NAN, t.kind == ROW_BAD));
    }
    if FROM_STATE {
        let state = row_state[row];
        let flags = select(0u, HAS_NAN, is_nan(state.x));
        return Statistics(state.x, state.y, state.z, state.w, 0.0, flags);
    }
    return row_statistics(team, start, t);
}

fn loss_of(row: Statistics) -> f32 {
    if (row.flags & HAS_NAN) != 0u {
        return nan();
    }
    switch row.flags & (HAS_POSITIVE_COST | HAS_NEGATIVE_COST) {
        case HAS_POSITIVE_COST: { return positive_infinity(); }
        case HAS_NEGATIVE_COST: { return -positive_infinity(); }
        // both: infinities of both signs have no sum
        case HAS_POSITIVE_COST | HAS_NEGATIVE_COST: { return nan(); }
        default: { return (row.rest + row.top) * log1p(row.s) + row.gap; }
    }
}

fn store_loss(team: Team, row: u32, t: RowTarget, statistics: Statistics) {
    if team.member != 0u {
        return;
    }
    row_losses[row] = loss_of(statistics);
    if KEEP_STATE {
        let m = select(statistics.m, nan(), (statistics.flags & HAS_NAN) != 0u);
        row_state[row] = vec4(m, statistics.s, statistics.rest, statistics.top);
    }
}

fn store_gradient(team: Team, row: u32, start: u32, t: RowTarget, statistics: Statistics) {
    let scale = row_scale(row);
    let is_nan_row = (statistics.flags & HAS_NAN) != 0u || scale.undefined || is_nan(scale.value);
    let filled = is_nan_row || t.kind == ROW_IGNORED;
    let filling = vec4(select(nan(), 0.0, t.kind == ROW_IGNORED));

    let inverse = 1.0 / (1.0 + statistics.s);
    let amounts = statistics.rest + statistics.top;
    let gradient_at_max = (statistics.rest - statistics.s * statistics.top) * inverse;
    // with a rival within a factor of two the general form does not cancel, and ties stay equal
    let is_alone = statistics.s < 0.5;
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        let at = start + c * params.positions;
        let last = min(params.classes - 1u - c, 3u);
        var g = filling;
        if !filled {
            let x = load_input(at, params.positions, last);
            let p = exp_nonpositive(x - statistics.m) * inverse;
            g = p * amounts - amount(t, c, valid_classes(c));
            g = select(g, vec4(gradient_at_max), vec4(is_alone) & (x == vec4(statistics.m)));
            g = annihilating_product(g, vec4(scale.value));
        }
        store_grad(at, params.positions, last, g);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward(builtins: Builtins) {
    let team = team_of(builtins);
    let row = team.index;
    if row >= params.rows {
        return;
    }
    let t = row_target(row);
    store_loss(team, row, t, statistics_of(team, row, row_start(row), t));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn backward(builtins: Builtins) {
    let team = team_of(builtins);
    let row = team.index;
    if row >= params.rows {
        return;
    }
    let t = row_target(row);
    let start = row_start(row);
    store_gradient(team, row, start, t, statistics_of(team, row, start, t));
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn forward_backward(builtins: Builtins) {
    let team = team_of(builtins);
    let row = team.index;
    if row >= params.rows {
        return;
    }
    let t = row_target(row);
    let start = row_start(row);
    let statistics = statistics_of(team, row, start, t);
    store_loss(team, row, t, statistics);
    store_gradient(team, row, start, t, statistics);
}
