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
// and from the op's file or the family's:
//     fn holds_exponentials() -> bool            whether a row that is held is so as e^(x[c] - m)

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
    // how many rows a team takes, one after the other
    rows_each: u32,
    // or how many teams share a row, and how many classes each of them takes: whole blocks
    shares: u32,
    share: u32,
    unused_0: u32,
    unused_1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

// Whether classes of a row lie apart: params.positions, of which there is more than one.
override STRIDED: bool = false;
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
    // the classes that the team takes: from the first of these to before the second
    begin: u32,
    end: u32,
    // ROW_KEPT, ROW_IGNORED or ROW_BAD (shared/classes.wgsl)
    kind: u32,
    // the target class, where there is one
    label: u32,
    // the amount at that class, beyond what is spread over all classes
    amount: f32,
    // where its logits lie, and what lies beside them: probabilities or an upstream gradient
    input: Span,
    beside: Span,
}

// Where the classes of a row lie in a binding: class 0, and from one to the next.
struct Span {
    first: u32,
    step: u32,
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

// The rows of a team: the first, and the one after the last. Shares, where rows have several.
fn rows_of(team: Team) -> vec2<u32> {
    let first = team.index * params.rows_each;
    return vec2(first, min(first + params.rows_each, params.rows * params.shares));
}

// A row of which the target says nothing.
fn row_at(index: u32, beside: u32) -> Row {
    var line = index;
    var position = 0u;
    if STRIDED {
        line = index / params.positions;
        position = index - line * params.positions;
    }
    return Row(
        index, line, position, 0u, params.classes, 0u, 0u, 0.0,
        span_of(line, position, INPUT), span_of(line, position, beside));
}

fn span_of(line: u32, position: u32, binding: u32) -> Span {
    return Span(place(binding, line, position), select(1u, params.positions, STRIDED));
}

fn element_of(span: Span, c: u32) -> u32 {
    return span.first + c * span.step;
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

// Their derivative by the input. A class at -inf has a slope of 0 in a cap, but its amount counts.
fn slopes_of(x: vec4<f32>) -> vec4<f32> {
    if SOFTCAP {
        let slope = tanh_slope4(x * (params.scale / params.softcap));
        return params.scale * select(slope, vec4(1.0), is_negative_infinity4(x));
    }
    if SCALED {
        return vec4(params.scale);
    }
    return vec4(1.0);
}

// Logits x relative to m: 0 or less.
fn relative4(x: vec4<f32>, m: f32) -> vec4<f32> {
    if SCALED {
        return (x - m) * params.scale;
    }
    return x - m;
}

// a (m - x), as logits: also where the distance alone is beyond f32.
fn cost4(a: vec4<f32>, m: f32, x: vec4<f32>) -> vec4<f32> {
    let distance = relative4(x, m);
    let scaled = select(a, a * params.scale, vec4(SCALED));
    // fused, so that no compiler factors the distance out again
    let apart = fma(scaled, vec4(m), -(scaled * x));
    return select(-a * distance, apart, is_negative_infinity4(distance));
}

// Four numbers from class c on; what lies past the row's end is -inf.
fn load_row(row: Row, c: u32, valid: vec4<bool>) -> vec4<f32> {
    if c >= params.classes {
        return vec4(-positive_infinity());
    }
    let x = load_input(element_of(row.input, c), row.input.step, last_of_four(c));
    if WHOLE_FOURS {
        return x;
    }
    return select(vec4(-positive_infinity()), x, valid);
}

fn valid_classes(c: u32) -> vec4<bool> {
    return vec4(c, c + 1u, c + 2u, c + 3u) < vec4(params.classes);
}

// Sums over the part of a row that one member has seen, relative to its maximum so far.
struct Partial {
    m: f32,
    below: vec4<f32>,
    at: vec4<u32>,
    rest: vec4<f32>,
    top: vec4<f32>,
    gap: vec4<f32>,
    flags: u32,
}

fn empty_partial() -> Partial {
    return Partial(
        LOWEST, vec4(0.0), vec4(0u), vec4(0.0), vec4(0.0), vec4(0.0), 0u);
}

// Moves a partial's maximum up to m: what was at the maximum is below it now.
fn raise(partial: ptr<function, Partial>, m: f32) {
    let moved = m > (*partial).m;
    let factor = exp_nonpositive(min(relative4(vec4((*partial).m), m), vec4(0.0))).x;
    (*partial).below =
        select((*partial).below, ((*partial).below + vec4<f32>((*partial).at)) * factor, moved);
    (*partial).at = select((*partial).at, vec4(0u), moved);
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

// Adds logits x, from class c on, and their exponentials e.
fn add_four(partial: ptr<function, Partial>, row: Row, x: vec4<f32>, e: vec4<f32>, c: u32) {
    let is_max = x == vec4((*partial).m);
    (*partial).below += select(e, vec4(0.0), is_max);
    (*partial).at += select(vec4(0u), vec4(1u), is_max);
    if SPREAD {
        let a = amount(row, c, valid_classes(c));
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

// A row is taken in blocks, of which each member holds HELD times four elements, RUN of them side by
// side. Where FITS, the row is one block, and still held when the gradient asks for it: it is read
// once. The host defines all three (src/kernel.rs).
var<private> held: array<vec4<f32>, HELD>;

// e^(x - m) of the k-th four held.
fn exponentials(k: u32, m: f32) -> vec4<f32> {
    if holds_exponentials() {
        return held[k];
    }
    return exp_nonpositive(relative4(logits_of(held[k]), m));
}

fn block_size(team: Team) -> u32 {
    return 4u * HELD * team.size;
}

// The first of the k-th four classes that a member holds of a block.
fn class_held(team: Team, block: u32, k: u32) -> u32 {
    return block + 4u * ((k / RUN * team.size + team.member) * RUN + k % RUN);
}

fn hold_block(team: Team, row: Row, block: u32) {
    for (var k = 0u; k < HELD; k += 1u) {
        let c = class_held(team, block, k);
        held[k] = load_row(row, c, valid_classes(c));
    }
}

// Whether the team's share of the row ends before this block, or begins after it.
fn is_past_row(row: Row, block: u32) -> bool {
    return (FITS && block != row.begin) || block - row.begin >= row.end - row.begin;
}

// Of longer rows the first block is held, too: their sums are taken from the last block to the first, and
// gradients the other way, so that what is read again first is what was read last. Not on software
// devices (RUN above 1), whose processors fetch ahead upwards.
const DOWNWARDS: bool = !FITS && RUN == 1u;

// Whether row_sums leaves a block held.
fn is_left_held(row: Row, block: u32) -> bool {
    return FITS || (DOWNWARDS && block == row.begin);
}

// Elements of one accumulator that are summed apart, so that none takes many additions.
const CHUNK: u32 = 64u;

fn row_statistics(team: Team, row: Row) -> Statistics {
    return statistics_of_sums(row_sums(team, row));
}

// What a team knows of its share of a row: as a Partial of one number each. flags has HAS_NAN_LOGIT for
// logits that there are.
struct Sums {
    m: f32,
    below: f32,
    at: f32,
    rest: f32,
    top: f32,
    gap: f32,
    flags: u32,
}

fn statistics_of_sums(sums: Sums) -> Statistics {
    // nothing at the maximum: nothing but -inf
    let flags = sums.flags | select(0u, HAS_NAN_LOGIT, sums.at == 0.0);
    // the count minus one as integers: as floats, a compiler may add the count to the rest first
    let s = sums.below + f32(u32(sums.at) - 1u);
    return Statistics(sums.m, s, sums.rest, sums.top, sums.gap, flags);
}

fn row_sums(team: Team, row: Row) -> Sums {
    var total = empty_partial();
    var extremes = no_extremes();
    var block = row.begin;
    var step = block_size(team);
    if DOWNWARDS {
        block += (row.end - row.begin - 1u) / step * step;
        step = 0u - step;
    }
    loop {
        var partial = empty_partial();
        for (var i = 0u; i < max(CHUNK / HELD, 1u) && !is_past_row(row, block); i += 1u) {
            hold_block(team, row, block);
            var most = vec4(LOWEST);
            for (var k = 0u; k < HELD; k += 1u) {
                extremes = with_extremes(extremes, held[k]);
                most = max(most, logits_of(held[k]));
            }
            var m = max(max(most.x, most.y), max(most.z, most.w));
            if FITS {
                partial.m = team_max(team, m);
            } else {
                raise(&partial, m);
            }
            for (var k = 0u; k < HELD; k += 1u) {
                let x = logits_of(held[k]);
                let e = exp_nonpositive(relative4(x, partial.m));
                add_four(&partial, row, x, e, class_held(team, block, k));
                if holds_exponentials() {
                    held[k] = e;
                }
            }
            block += step;
        }
        if FITS {
            total = partial;
            break;
        }
        merge(&total, &partial);
        if is_past_row(row, block) {
            break;
        }
    }

    var m = total.m;
    if !FITS {
        m = team_max(team, m);
        raise(&total, m);
    }
    let below = add_up(total.below);
    let at = add_up(vec4<f32>(total.at));
    let has_nan = has_nan_or_positive_infinity(extremes);
    if SPREAD {
        let masses = team_sum(team, vec4(below, at, add_up(total.rest), add_up(total.top)));
        let gap = team_sum(team, vec4(add_up(total.gap))).x;
        let flags = team_or(team, total.flags | select(0u, HAS_NAN_LOGIT, has_nan));
        return Sums(m, masses.x, masses.y, masses.z, masses.w, gap, flags);
    }
    let masses = team_sum_three(team, vec3(below, at, select(0.0, 1.0, has_nan)));
    return Sums(
        m, masses.x, masses.y, 0.0, 0.0, 0.0, select(0u, HAS_NAN_LOGIT, masses.z != 0.0));
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
    // what multiplies e^(x - m)
    factor: f32,
    at_max: f32,
    // what only the exponential of a lone maximum is above
    threshold: f32,
}

fn row_gradient(row: Statistics) -> RowGradient {
    let inverse = 1.0 / (1.0 + row.s);
    var z = 0.0;
    if Z_LOSS {
        z = 2.0 * params.z_loss * logsumexp(row);
    }
    // With a rival within a factor of two the general form does not cancel, and ties stay equal.
    let at_max = ((row.rest + z) - row.s * row.top) * inverse;
    return RowGradient(
        (row.rest + row.top + z) * inverse, at_max, select(2.0, 0.75, row.s < 0.5));
}

// The gradient at four classes, by the logit, of exponentials e and amounts a.
fn gradient_of_four(gradient: RowGradient, e: vec4<f32>, a: vec4<f32>) -> vec4<f32> {
    return select(
        e * gradient.factor - a, vec4(gradient.at_max), e > vec4(gradient.threshold));
}
