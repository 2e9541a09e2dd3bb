// The state of a row of logits: what is known of it after one reading, how partial knowledge is
// merged, and the loss and the gradient that follow from it. There are no loads and no bindings
// here, so that any family can use it that has logits in registers.
//
// Let x[c] be the row's logits, m the largest of them, and a[c] the target weight of class c:
// what multiplies -ln p[c] in the loss, that is, the target after label smoothing and class
// weights. What lies strictly below m is kept apart from what lies at m, because the sum of both
// loses the digits of a confident row:
//     exp_sum_below = sum over x[c] < m of e^(x[c] - m)
//     max_count     = number of classes with x[c] = m
//     target_below  = sum over x[c] < m of a[c]
//     target_at_max = sum over x[c] = m of a[c]
//     margin_sum    = sum of a[c] (m - x[c])
//     denom_minus_1 = exp_sum_below + (max_count - 1)    the softmax's denominator, less 1
//     entropy_sum   = sum of e^(x[c] - m) (m - x[c])     with ENTROPY alone
// With T = target_below + target_at_max:
//     loss    = T log1p(denom_minus_1) + margin_sum
//     grad[c] = p[c] T - a[c]
//               at a maximum without a near rival, where that cancels:
//               (target_below - denom_minus_1 target_at_max) / (1 + denom_minus_1)
//     entropy = log1p(denom_minus_1) + entropy_sum / (1 + denom_minus_1)
//
// Reads `scale`, `softcap` and `z_loss` of the family's Params, where an override below asks for
// it.

// Whether there are target weights all over the row. Otherwise the only one is at the target class
// (with_single_target), their sums stay 0 until then, and they cost nothing.
override DENSE_TARGET: bool = false;
// Whether partials of the row come from memory, each with its target weights, and are merged.
override FROM_PARTIALS: bool = false;
// Whether logits are multiplied by params.scale. Their distances from m are, since products of
// large logits would be rounded before the subtraction.
override SCALED: bool = false;
// Whether logits are softcap * tanh(scale * x / softcap).
override SOFTCAP: bool = false;
// Whether z_loss * logsumexp^2 is added to the loss.
override Z_LOSS: bool = false;
// Whether the entropy of the row's softmax is asked for.
override ENTROPY: bool = false;

// The flags of a partial, and of a row's statistics.
// There is NaN or +inf among the logits; in statistics also, all logits are -inf.
const HAS_NAN_LOGIT: u32 = 1u;
// A logit of -inf has a target weight of this sign.
const HAS_POSITIVE_COST: u32 = 2u;
const HAS_NEGATIVE_COST: u32 = 4u;
// A target weight is NaN.
const HAS_NAN_TARGET: u32 = 8u;

// What is known of some of a row's classes, relative to the largest logit among them. Members of
// a team, teams that split a row, devices that split a vocabulary and tiles of a product all find
// one, and all merge them by the rule of `merge`.
struct RowPartial {
    m: f32,
    exp_sum_below: f32,
    max_count: f32,
    target_below: f32,
    target_at_max: f32,
    margin_sum: f32,
    // HAS_*
    flags: u32,
    // the first class at m, among all of the row's; 0 where row outputs are not asked for
    first_at_max: u32,
    entropy_sum: f32,
}

// A partial in memory: eight f32 as two vectors.
//     a = (m, exp_sum_below, max_count, target_below)
//     b = (target_at_max, margin_sum, first_at_max and flags as bits, entropy_sum)
struct PackedPartial {
    a: vec4<f32>,
    b: vec4<f32>,
}

// The bits of flags and class are those of a float between 2 and 2^64, because others might be
// flushed to 0, or lose the bits of a NaN, where they are copied as floats.
const CLASS_BITS: u32 = 25u;
const NORMAL_BITS: u32 = 0x40000000u;

fn pack_partial(p: RowPartial) -> PackedPartial {
    let first = min(p.first_at_max, (1u << CLASS_BITS) - 1u);
    return PackedPartial(
        vec4(p.m, p.exp_sum_below, p.max_count, p.target_below),
        vec4(
            p.target_at_max, p.margin_sum,
            bitcast<f32>(NORMAL_BITS | (p.flags << CLASS_BITS) | first), p.entropy_sum));
}

fn unpack_partial(packed: PackedPartial) -> RowPartial {
    let a = packed.a;
    let b = packed.b;
    let bits = bitcast<u32>(b.z) & (NORMAL_BITS - 1u);
    return RowPartial(
        a.x, a.y, a.z, a.w, b.x, b.y,
        bits >> CLASS_BITS, bits & ((1u << CLASS_BITS) - 1u), b.w);
}

fn empty_row_partial() -> RowPartial {
    return RowPartial(LOWEST, 0.0, 0.0, 0.0, 0.0, 0.0, 0u, 0u, 0.0);
}

// A partial that is being summed, in four lanes: each sum is that of its lanes. A member adds a
// vec4 of classes at a time, a class to each lane.
struct PartialLanes {
    m: f32,
    exp_sum_below: vec4<f32>,
    max_count: vec4<u32>,
    target_below: vec4<f32>,
    target_at_max: vec4<f32>,
    margin_sum: vec4<f32>,
    entropy_sum: vec4<f32>,
    flags: u32,
    // with FROM_PARTIALS alone
    first_at_max: u32,
}

// The partial of no class. Its maximum is the lowest finite number, since -inf - -inf would be NaN
// for classes that are all masked.
fn empty_partial() -> PartialLanes {
    return PartialLanes(
        LOWEST, vec4(0.0), vec4(0u), vec4(0.0), vec4(0.0), vec4(0.0), vec4(0.0), 0u, 0u);
}

fn lanes_of_partial(p: RowPartial) -> PartialLanes {
    var lanes = empty_partial();
    lanes.m = p.m;
    lanes.exp_sum_below.x = p.exp_sum_below;
    lanes.max_count.x = u32(p.max_count);
    lanes.target_below.x = p.target_below;
    lanes.target_at_max.x = p.target_at_max;
    lanes.margin_sum.x = p.margin_sum;
    lanes.entropy_sum.x = p.entropy_sum;
    lanes.flags = p.flags;
    lanes.first_at_max = p.first_at_max;
    return lanes;
}

fn partial_of_lanes(lanes: PartialLanes) -> RowPartial {
    return RowPartial(
        lanes.m, add_up(lanes.exp_sum_below), add_up(vec4<f32>(lanes.max_count)),
        add_up(lanes.target_below), add_up(lanes.target_at_max), add_up(lanes.margin_sum),
        lanes.flags, lanes.first_at_max, add_up(lanes.entropy_sum));
}

// Moves a partial's maximum up to m. What was at the maximum is below it afterwards.
fn rescale(partial: ptr<function, PartialLanes>, m: f32) {
    let moved = m > (*partial).m;
    let distance = min(relative4(vec4((*partial).m), m), vec4(0.0));
    let factor = exp_nonpositive(distance).x;
    if ENTROPY {
        // Every exponential moves down by the distance. One that becomes 0 has no entropy, however
        // far it moves.
        let exp_sum = (*partial).exp_sum_below + vec4<f32>((*partial).max_count);
        let entropy_sum = ((*partial).entropy_sum - exp_sum * distance) * factor;
        let kept = select(entropy_sum, vec4(0.0), factor == 0.0);
        (*partial).entropy_sum = select((*partial).entropy_sum, kept, moved);
    }
    (*partial).exp_sum_below = select(
        (*partial).exp_sum_below,
        ((*partial).exp_sum_below + vec4<f32>((*partial).max_count)) * factor, moved);
    (*partial).max_count = select((*partial).max_count, vec4(0u), moved);
    if DENSE_TARGET || FROM_PARTIALS {
        let target_sum = (*partial).target_below + (*partial).target_at_max;
        // Every class seen so far moves further from the maximum. Where the target weights are 0
        // that costs nothing, even if the distance overflows.
        let cost = cost4(target_sum, m, vec4((*partial).m));
        let gain = select(cost, vec4(0.0), target_sum == vec4(0.0));
        (*partial).margin_sum += select(vec4(0.0), gain, moved);
        (*partial).target_below = select((*partial).target_below, target_sum, moved);
        (*partial).target_at_max = select((*partial).target_at_max, vec4(0.0), moved);
    }
    (*partial).m = max((*partial).m, m);
}

// Adds four logits x that are at most the partial's m, with their exponentials e and, where
// DENSE_TARGET, their target weights a.
fn add_vec4(partial: ptr<function, PartialLanes>, x: vec4<f32>, e: vec4<f32>, a: vec4<f32>) {
    let is_max = x == vec4((*partial).m);
    (*partial).exp_sum_below += select(e, vec4(0.0), is_max);
    (*partial).max_count += select(vec4(0u), vec4(1u), is_max);
    if ENTROPY {
        let term = -e * relative4(x, (*partial).m);
        (*partial).entropy_sum += select(term, vec4(0.0), e == vec4(0.0));
    }
    if DENSE_TARGET {
        (*partial).target_at_max += select(vec4(0.0), a, is_max);
        (*partial).target_below += select(a, vec4(0.0), is_max);
        let masked = is_negative_infinity4(x);
        let costs = a != vec4(0.0);
        (*partial).flags |= select(0u, HAS_NAN_TARGET, any(is_nan4(a)));
        // A class at the maximum adds 0. One at -inf would add an infinity, for which a flag
        // stands.
        (*partial).margin_sum += select(cost4(a, (*partial).m, x), vec4(0.0), masked | !costs);
        (*partial).flags |= select(0u, HAS_POSITIVE_COST, any(masked & (a > vec4(0.0))));
        (*partial).flags |= select(0u, HAS_NEGATIVE_COST, any(masked & (a < vec4(0.0))));
    }
}

// Adds another partial, of other classes of the row. Both are rescaled to the larger maximum. The
// order of merging is fixed by the caller, since it decides the bits.
fn merge(partial: ptr<function, PartialLanes>, other: ptr<function, PartialLanes>) {
    if FROM_PARTIALS {
        let is_empty = all((*partial).max_count == vec4(0u));
        let takes = (*other).m > (*partial).m || is_empty;
        let both = (*other).m == (*partial).m && any((*other).max_count != vec4(0u));
        let first = min((*partial).first_at_max, select(~0u, (*other).first_at_max, both));
        (*partial).first_at_max = select(first, (*other).first_at_max, takes);
    }
    rescale(partial, (*other).m);
    rescale(other, (*partial).m);
    (*partial).exp_sum_below += (*other).exp_sum_below;
    (*partial).max_count += (*other).max_count;
    if ENTROPY {
        (*partial).entropy_sum += (*other).entropy_sum;
    }
    if DENSE_TARGET || FROM_PARTIALS {
        (*partial).target_below += (*other).target_below;
        (*partial).target_at_max += (*other).target_at_max;
        (*partial).margin_sum += (*other).margin_sum;
    }
    (*partial).flags |= (*other).flags;
}

// A partial with the row's only target weight, which belongs to one of its classes, at the logit x.
fn with_single_target(bare: RowPartial, target_weight: f32, x: f32) -> RowPartial {
    var partial = bare;
    partial.target_at_max = select(0.0, target_weight, x == partial.m);
    partial.target_below = select(target_weight, 0.0, x == partial.m);
    if target_weight != 0.0 {
        if is_negative_infinity4(vec4(x)).x {
            partial.flags |= select(HAS_NEGATIVE_COST, HAS_POSITIVE_COST, target_weight > 0.0);
        } else {
            partial.margin_sum = cost4(vec4(target_weight), partial.m, vec4(x)).x;
        }
    }
    return partial;
}

// The partial of a team's classes from those of its members, which are already at the team's
// maximum; the same for every member.
fn partial_of_members(team: Team, own: RowPartial, has_nan: bool) -> RowPartial {
    var partial = own;
    if DENSE_TARGET {
        let sums = team_sum(
            team, vec4(own.exp_sum_below, own.max_count, own.target_below, own.target_at_max));
        let more = team_sum(team, vec4(own.margin_sum, own.entropy_sum, 0.0, 0.0));
        partial.exp_sum_below = sums.x;
        partial.max_count = sums.y;
        partial.target_below = sums.z;
        partial.target_at_max = sums.w;
        partial.margin_sum = more.x;
        partial.entropy_sum = more.y;
        partial.flags = team_or(team, own.flags | select(0u, HAS_NAN_LOGIT, has_nan));
        return partial;
    }
    let sums =
        team_sum_three(team, vec3(own.exp_sum_below, own.max_count, select(0.0, 1.0, has_nan)));
    partial.exp_sum_below = sums.x;
    partial.max_count = sums.y;
    partial.flags = select(0u, HAS_NAN_LOGIT, sums.z != 0.0);
    if ENTROPY {
        partial.entropy_sum = team_sum(team, vec4(own.entropy_sum)).x;
    }
    return partial;
}

// What is known of a whole row.
struct RowStats {
    m: f32,
    denom_minus_1: f32,
    target_below: f32,
    target_at_max: f32,
    margin_sum: f32,
    // HAS_*
    flags: u32,
    first_at_max: u32,
    entropy_sum: f32,
}

// The statistics of a row, from the partial of all of its classes.
fn stats_of_partial(partial: RowPartial) -> RowStats {
    // Where no class is at the maximum, all are -inf.
    let flags = partial.flags | select(0u, HAS_NAN_LOGIT, partial.max_count == 0.0);
    // The 1 is taken off as an integer, because a compiler may reassociate floats and add the
    // count to the exponentials first.
    let denom_minus_1 = partial.exp_sum_below + f32(u32(partial.max_count) - 1u);
    return RowStats(
        partial.m, denom_minus_1, partial.target_below, partial.target_at_max,
        partial.margin_sum, flags, partial.first_at_max, partial.entropy_sum);
}

fn is_nan_row(stats: RowStats) -> bool {
    return (stats.flags & (HAS_NAN_LOGIT | HAS_NAN_TARGET)) != 0u;
}

// The logarithm of the sum of e^x over the row's logits.
fn logsumexp(stats: RowStats) -> f32 {
    var m = stats.m;
    if SCALED {
        m *= params.scale;
    }
    return m + log1p(stats.denom_minus_1);
}

// The entropy of the row's softmax: the sum of -p[c] ln p[c], in nats.
fn entropy(stats: RowStats) -> f32 {
    return log1p(stats.denom_minus_1) + stats.entropy_sum / (1.0 + stats.denom_minus_1);
}

fn loss_of(stats: RowStats) -> f32 {
    if is_nan_row(stats) {
        return nan();
    }
    switch stats.flags & (HAS_POSITIVE_COST | HAS_NEGATIVE_COST) {
        case HAS_POSITIVE_COST: { return positive_infinity(); }
        case HAS_NEGATIVE_COST: { return -positive_infinity(); }
        // infinities of both signs have no sum
        case HAS_POSITIVE_COST | HAS_NEGATIVE_COST: { return nan(); }
        default: {
            let target_sum = stats.target_below + stats.target_at_max;
            let loss = target_sum * log1p(stats.denom_minus_1) + stats.margin_sum;
            if Z_LOSS {
                let log_denom = logsumexp(stats);
                let z_loss = params.z_loss * log_denom * log_denom;
                // what is infinite of the loss itself is below that
                return select(loss + z_loss, z_loss, is_infinity4(vec4(z_loss)).x);
            }
            return loss;
        }
    }
}

// What the gradient at each class needs to know of the row.
struct RowGradient {
    // p[c] T is this times e^(x[c] - m); the z-loss is part of it
    factor: f32,
    // the gradient at a maximum without a near rival
    at_max: f32,
    // an exponential above this is that of such a maximum
    threshold: f32,
}

fn row_gradient(stats: RowStats) -> RowGradient {
    let inverse = 1.0 / (1.0 + stats.denom_minus_1);
    var z_gradient = 0.0;
    if Z_LOSS {
        let log_denom = logsumexp(stats);
        z_gradient = 2.0 * params.z_loss * log_denom;
        // scaled logits may be beyond f32 where this is not
        if SCALED && is_infinity4(vec4(log_denom)).x {
            z_gradient = (2.0 * params.z_loss * params.scale) * stats.m;
        }
    }
    let at_max =
        ((stats.target_below + z_gradient) - stats.denom_minus_1 * stats.target_at_max) * inverse;
    // Where all others have less than half of the maximum's mass together, its exponential of 1
    // is the only one above 3/4. With a nearer rival the general form does not cancel, and serves
    // for ties too, which then come out equal: no exponential is above 2.
    return RowGradient(
        (stats.target_below + stats.target_at_max + z_gradient) * inverse, at_max,
        select(2.0, 0.75, stats.denom_minus_1 < 0.5));
}

// The gradient with respect to four logits, whose exponentials are e and whose target weights are
// a.
fn gradient_of_vec4(gradient: RowGradient, e: vec4<f32>, a: vec4<f32>) -> vec4<f32> {
    var shared_part = e * gradient.factor;
    if Z_LOSS {
        // the factor may be infinite
        shared_part = zero_wins(e, vec4(gradient.factor));
    }
    return select(shared_part - a, vec4(gradient.at_max), e > vec4(gradient.threshold));
}

// The logits that numbers of the input stand for, without the scale of SCALED. -inf stays.
fn logits_of(x: vec4<f32>) -> vec4<f32> {
    if SOFTCAP {
        let capped = params.softcap * tanh4(x * (params.scale / params.softcap));
        return select(capped, x, is_negative_infinity4(x));
    }
    return x;
}

// Their derivatives with respect to the input. A class at -inf keeps a slope of 1 under a cap,
// where the tanh has 0, because its target weight counts.
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

// a (m - x) in scaled logits. It is right also where m - x overflows and the product does not.
fn cost4(a: vec4<f32>, m: f32, x: vec4<f32>) -> vec4<f32> {
    let distance = relative4(x, m);
    let scaled = select(a, a * params.scale, vec4(SCALED));
    // fma, because a compiler may factor the distance out of two products
    let apart = fma(scaled, vec4(m), -(scaled * x));
    return select(-a * distance, apart, is_negative_infinity4(distance));
}
