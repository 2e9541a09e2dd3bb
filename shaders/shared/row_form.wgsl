// The row form: what is known of a row after one read, by a team, for row losses and row maps.
//
// Let m be the row's largest logit and a[c] what multiplies -ln p[c]. What lies strictly below m is
// kept apart from what lies at m, so that a confident row loses no digits:
//     below = sum over x[c] < m of e^(x[c] - m)           at   = how many classes lie at m
//     rest  = sum over x[c] < m of a[c]                   top  = sum over x[c] = m of a[c]
//     gap   = sum of a[c] (m - x[c])
//     s     = below + (at - 1)
//     loss  = (rest + top) log1p(s) + gap
//     grad[c] = p[c] (rest + top) - a[c], and for a maximum without a near rival, where that
//               cancels, (rest - s top) / (1 + s)
//
// Hook, from the op's file:
//     fn amount(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32>
//                                                a[c], ..., a[c + 3]; 0 where not valid

struct Params {
    places: array<vec4<u32>, 9>,
    rows: u32,
    classes: u32,
    // classes of a row are this far apart; so are rows of neighbouring positions 1 apart
    positions: u32,
    ignore_index: i32,
    // 1 - label smoothing
    confidence: f32,
    // label smoothing / classes
    smoothing: f32,
    // the divisor of the mean, where the host knows it
    divisor: f32,
    // the extras of cross entropy
    scale: f32,
    softcap: f32,
    z_loss: f32,
    // the first row of this dispatch, among all
    first: u32,
    unused: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Whether there are amounts all over the row. Otherwise their sums stay 0 and cost nothing.
override SPREAD: bool = false;
// Whether logits are multiplied by params.scale. It is their distances that are: products of large
// logits would be rounded before the subtraction.
override SCALED: bool = false;
// Whether logits are softcap * tanh(scale * x / softcap).
override SOFTCAP: bool = false;
// Whether z_loss * logsumexp^2 is added to the loss.
override Z_LOSS: bool = false;

struct Row {
    index: u32,
    // the index of the batch, and the position within it
    line: u32,
    position: u32,
    // ROW_KEPT, ROW_IGNORED or ROW_BAD (shared/classes.wgsl)
    kind: u32,
    // the target class, where there is one
    label: u32,
    // the amount at that class, beyond what is spread over all classes
    amount: f32,
}

// What a row's gradient is multiplied by.
struct RowScale {
    value: f32,
    // the mean over rows whose weights sum to 0
    undefined: bool,
}

// What a team knows of a row.
struct Statistics {
    m: f32,
    s: f32,
    rest: f32,
    top: f32,
    gap: f32,
    // HAS_*
    flags: u32,
}

// NaN or +inf among the logits, or nothing but -inf
const HAS_NAN_LOGIT: u32 = 1u;
const HAS_NAN_AMOUNT: u32 = 8u;
// -inf logits that cost something, by the sign of what they cost
const HAS_POSITIVE_COST: u32 = 2u;
const HAS_NEGATIVE_COST: u32 = 4u;

// A row of which the target says nothing.
fn row_at(index: u32) -> Row {
    let line = index / params.positions;
    return Row(index, line, index - line * params.positions, 0u, 0u, 0.0);
}

// The element at class c of a row.
fn element_of(row: Row, binding: u32, c: u32) -> u32 {
    return place(binding, row.line, row.position + c * params.positions);
}

fn last_of_four(c: u32) -> u32 {
    return min(params.classes - 1u - c, 3u);
}

// The logits that numbers of the input stand for, but for SCALED.
fn logits_of(x: vec4<f32>) -> vec4<f32> {
    if SOFTCAP {
        let capped = params.softcap * tanh4(x * (params.scale / params.softcap));
        return select(capped, x, is_negative_infinity4(x));
    }
    return x;
}

// Their derivative by the input.
fn slopes_of(x: vec4<f32>) -> vec4<f32> {
    if SOFTCAP {
        return params.scale * tanh_slope4(x * (params.scale / params.softcap));
    }
    if SCALED {
        return vec4(params.scale);
    }
    return vec4(1.0);
}

// How far logits x lie below m.
fn distance4(m: f32, x: vec4<f32>) -> vec4<f32> {
    if SCALED {
        return (m - x) * params.scale;
    }
    return m - x;
}

// a (m - x), as logits: also where the distance alone is beyond f32.
fn cost4(a: vec4<f32>, m: f32, x: vec4<f32>) -> vec4<f32> {
    let cost = a * distance4(m, x);
    let is_beyond = bitcast<vec4<u32>>(m - x) == vec4(0x7f800000u);
    let scaled = select(a, a * params.scale, vec4(SCALED));
    // fused, so that no compiler factors the distance out again
    return select(cost, fma(scaled, vec4(m), -(scaled * x)), is_beyond);
}

// Four numbers from class c on; what lies past the row's end is -inf.
fn load_row(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(-positive_infinity());
    }
    let x = load_input(element_of(row, INPUT, c), params.positions, last_of_four(c));
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
    flags: u32,
}

fn empty_partial() -> Partial {
    return Partial(
        LOWEST, vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), 0u);
}

// Moves a partial's maximum up to m: what was at the maximum is below it now.
fn raise(partial: ptr<function, Partial>, m: f32) {
    let moved = m > (*partial).m;
    let distance = max(distance4(m, vec4((*partial).m)).x, 0.0);
    let factor = exp_nonpositive(vec4(-distance)).x;
    (*partial).below =
        select((*partial).below, ((*partial).below + (*partial).at) * factor, moved);
    (*partial).at = select((*partial).at, vec4(0.0), moved);
    if SPREAD {
        let amounts = (*partial).rest + (*partial).top;
        // amounts of 0 gain nothing, even where the distance overflows
        let cost = cost4(amounts, m, vec4((*partial).m));
        let gain = select(cost, vec4(0.0), amounts == vec4(0.0));
        (*partial).gap += select(vec4(0.0), gain, moved);
        (*partial).rest = select((*partial).rest, amounts, moved);
        (*partial).top = select((*partial).top, vec4(0.0), moved);
    }
    (*partial).m = max((*partial).m, m);
}

fn add_four(
    partial: ptr<function, Partial>, row: Row, x: vec4<f32>, c: u32, valid: vec4<bool>,
) {
    let is_max = x == vec4((*partial).m);
    let below = exp_nonpositive(-distance4((*partial).m, x));
    (*partial).below += select(below, vec4(0.0), is_max);
    (*partial).at += select(vec4(0.0), vec4(1.0), is_max);
    if SPREAD {
        let a = amount(row, c, valid);
        (*partial).top += select(vec4(0.0), a, is_max);
        (*partial).rest += select(a, vec4(0.0), is_max);
        let masked = is_negative_infinity4(x);
        let costs = a != vec4(0.0);
        (*partial).flags |= select(0u, HAS_NAN_AMOUNT, any(is_nan4(a)));
        // a class at the maximum adds 0; one at -inf is told by its flag
        (*partial).gap += select(cost4(a, (*partial).m, x), vec4(0.0), masked | !costs);
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

fn row_statistics(team: Team, row: Row) -> Statistics {
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
            let read0 = load_row(row, c, v0);
            let read1 = load_row(row, c1, v1);
            let read2 = load_row(row, c2, v2);
            let read3 = load_row(row, c3, v3);
            key = max(key, max(
                max(nan_or_positive_infinity_key(read0), nan_or_positive_infinity_key(read1)),
                max(nan_or_positive_infinity_key(read2), nan_or_positive_infinity_key(read3))));
            let x0 = logits_of(read0);
            let x1 = logits_of(read1);
            let x2 = logits_of(read2);
            let x3 = logits_of(read3);
            let most = max(max(x0, x1), max(x2, x3));
            raise(&partial, max(max(most.x, most.y), max(most.z, most.w)));
            add_four(&partial, row, x0, c, v0);
            add_four(&partial, row, x1, c1, v1);
            add_four(&partial, row, x2, c2, v2);
            add_four(&partial, row, x3, c3, v3);
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
    var flags = team_or(team, total.flags | select(0u, HAS_NAN_LOGIT, has_nan));
    // nothing at the maximum: nothing but -inf
    flags |= select(0u, HAS_NAN_LOGIT, masses.y == 0.0);

    // the count minus one as integers: as floats, a compiler may add the count to the rest first
    let s = masses.x + f32(u32(masses.y) - 1u);
    return Statistics(m, s, masses.z, masses.w, gap, flags);
}

// The first class at the maximum; the number of classes where nothing is.
fn first_at_max(team: Team, row: Row, statistics: Statistics) -> u32 {
    var m = statistics.m;
    if SOFTCAP {
        // a cap makes ties of large logits: look at what they were before
        m = LOWEST;
        for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
            let x = load_row(row, c, valid_classes(c));
            m = max(m, max(max(x.x, x.y), max(x.z, x.w)));
        }
        m = team_max(team, m);
    }
    var first = params.classes;
    for (var c = 4u * team.member; c < params.classes; c += 4u * team.size) {
        let at_max = load_row(row, c, valid_classes(c)) == vec4(m);
        let found = select(vec4(first), vec4(c, c + 1u, c + 2u, c + 3u), at_max);
        first = min(first, min(min(found.x, found.y), min(found.z, found.w)));
    }
    return team_min(team, first);
}

fn logsumexp(row: Statistics) -> f32 {
    var m = row.m;
    if SCALED {
        m *= params.scale;
    }
    return m + log1p(row.s);
}

// What the gradient of a row needs of its statistics.
struct RowGradient {
    inverse: f32,
    amounts: f32,
    at_max: f32,
    is_alone: bool,
}

fn row_gradient(row: Statistics) -> RowGradient {
    let inverse = 1.0 / (1.0 + row.s);
    var z = 0.0;
    if Z_LOSS {
        z = 2.0 * params.z_loss * logsumexp(row);
    }
    // with a rival within a factor of two the general form does not cancel, and ties stay equal
    let at_max = ((row.rest + z) - row.s * row.top) * inverse;
    return RowGradient(inverse, row.rest + row.top + z, at_max, row.s < 0.5);
}

// The gradient at four classes with numbers x of the input and amounts a.
fn gradient_of_four(
    statistics: Statistics, gradient: RowGradient, x: vec4<f32>, a: vec4<f32>,
) -> vec4<f32> {
    let logits = logits_of(x);
    let p = exp_nonpositive(-distance4(statistics.m, logits)) * gradient.inverse;
    let is_lone_max = vec4(gradient.is_alone) & (logits == vec4(statistics.m));
    let g = select(p * gradient.amounts - a, vec4(gradient.at_max), is_lone_max);
    if SCALED || SOFTCAP {
        // a class at -inf has a slope of 0 in a cap; its amount counts all the same
        return g * select(slopes_of(x), vec4(params.scale), is_negative_infinity4(x));
    }
    return g;
}
